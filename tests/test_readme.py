"""What the README says is so: its tree is the real tree, its program runs."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WHOLE = ("examples/pictures", "tests/data", "mmgpt/checkpoints")  # folders that the tree names as one
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)  # (language, text)
LINE = re.compile(r"^( *)(\S+)(?: -> \S+)? {2,}(\S.*)$")


def tree() -> dict[str, str]:
    """path -> purpose, as the README's tree says; two spaces of indentation are one folder."""
    (block,) = (block for _, block in BLOCKS if block.startswith("mmgpt/"))
    found, parents = {}, []
    for line in block.splitlines():
        match = LINE.match(line)
        assert match, f"{line!r} has no purpose"
        depth = len(match[1]) // 2
        parents = [*parents[:depth], match[2]]
        found["".join(parents)] = match[3]
    return found


def files() -> set[str]:
    """What git holds, or would hold. An __init__.py of one line has no purpose of its own, its folder has."""
    try:
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    there = (path for path in listed.splitlines() if (ROOT / path).exists())
    return {path for path in there if not (path.endswith("__init__.py") and len((ROOT / path).read_text().splitlines()) <= 1)}


def test_the_tree_lists_every_file_and_no_other():
    named = tree()
    listed = {path.rstrip("/") for path in named if not path.endswith("/") or path.rstrip("/") in WHOLE}
    inside = {path for path in files() if not path.startswith(tuple(f"{folder}/" for folder in WHOLE))}
    folders = {folder for folder in WHOLE if any(path.startswith(f"{folder}/") for path in files())}
    assert inside - listed == set(), "files that the README does not name"
    assert listed - inside - folders == set(), "names in the README that do not exist"
    for path in named:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).exists(), path


def test_links_at_the_root_show_the_flow():
    assert "encoders -> mmgpt/encoders" in README and (ROOT / "encoders").resolve() == (ROOT / "mmgpt" / "encoders").resolve()
    assert "decoders -> mmgpt/decoders" in README and (ROOT / "decoders").resolve() == (ROOT / "mmgpt" / "decoders").resolve()


def test_the_commands_exist(capsys):
    from mmgpt.cli import parser

    for words in re.findall(r"^ {4}mmgpt (.*)$", README, re.MULTILINE):
        command, *rest = re.findall(r'"[^"]*"|\S+', words)
        options = parser().parse_args([command, *rest])
        assert {"eval": "evaluate"}.get(command, command) in (options.run.__name__, getattr(options, "name", None))
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`|^ {4}make (\w+)", README, re.MULTILINE):
        assert f"\n{''.join(target)}: " in targets


@pytest.mark.skipif(not (ROOT / "mmgpt" / "checkpoints" / "emoji").is_dir(), reason="the shipped checkpoint is not in this checkout yet")
def test_the_program_runs(tmp_path, monkeypatch, capsys):
    program, *_ = (block for language, block in BLOCKS if language == "python")  # the others need a network
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert len(list(tmp_path.glob("*.png"))) == 3 and len(capsys.readouterr().out.splitlines()) == 2
