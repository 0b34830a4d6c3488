"""Versions of transformers -> how its own common tests fare on the adapter: a table of passed, failed, skipped, and why.

    python tools/hf_tests.py installed 5.17.0

The tests are not in transformers' wheels but in its source distribution, which is fetched once into ~/.cache/mmgpt/transformers and never
copied into this repository; so is a version that is not installed. What the source distribution lacks (a mixin for `generate`,
one for exporting, the pictures of a hub) is stood in for by the empty or small files below.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from importlib.metadata import version as installed_version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmgpt" / "transformers"
EXTRA = ("parameterized==0.9.0", "pytest-timeout==2.4.0")
STAND_INS = {
    "tests/__init__.py": "",
    "tests/models/__init__.py": "",
    "tests/models/mmgpt/__init__.py": "",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "pytest.ini": "[pytest]\nmarkers =\n    generate: theirs\ntimeout = 1800\n",
    "utils/fetch_hub_objects_for_ci.py": '''
from pathlib import Path


def url_to_local_path(url, return_url_if_not_found=True):
    """A small picture in place of the one on a hub; sound and video are not asked for."""
    from PIL import Image

    path = Path(__file__).with_name(url.rpartition("/")[2])
    if path.suffix in (".jpg", ".jpeg", ".png") and not path.exists():
        Image.linear_gradient("L").convert("RGB").resize((64, 48)).save(path)
    return str(path)
''',
}


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], check=True)


def prepared(version: str) -> Path:
    """The folder with transformers' tests of that version and ours in it."""
    folder = CACHE / version
    if not (folder / "tests" / "test_modeling_common.py").exists():
        pip("download", "--no-deps", "--no-binary", "transformers", "--dest", str(folder), f"transformers=={version}")
        (archive,) = folder.glob("transformers-*.tar.gz")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                inside = member.name.partition("/")[2]
                if member.isfile() and inside.startswith("tests/"):
                    (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                    (folder / inside).write_bytes(tar.extractfile(member).read())
        archive.unlink()
    for name, text in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for test in (ROOT / "tests" / "hf").glob("*.py"):
        shutil.copy(test, folder / "tests" / "models" / "mmgpt" / test.name)
    return folder


def packages(version: str) -> list[str]:
    """Folders to import from: the tests' own packages, and the version itself where another one is installed."""
    wanted = {CACHE / "extra": EXTRA}
    if version != installed_version("transformers"):
        older = ("huggingface_hub<2", "httpx<1", "httpcore", "h11") if tuple(map(int, version.split(".")[:2])) < (5, 18) else ()
        wanted[CACHE / f"site-{version}"] = (f"transformers=={version}", *older)
    for folder, names in wanted.items():
        if not folder.exists():
            pip("install", "--no-deps", "--no-compile", "--target", f"{folder}.new", *names)
            Path(f"{folder}.new").rename(folder)
    return [str(ROOT), *map(str, wanted)]


def run(version: str, words: list[str]) -> tuple[Counter, Counter, list[str]]:
    """(how many passed, failed, skipped; why skipped; what failed) of all our test classes on one version."""
    folder, report = prepared(version), CACHE / f"report-{version}.xml"
    report.unlink(missing_ok=True)
    paths = os.pathsep.join([*packages(version), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "JAXTYPING_DISABLE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini", "--rootdir", ".", f"--junitxml={report}", "tests/models/mmgpt", *words]
    subprocess.run(command, cwd=folder, env=settings)
    counts, reasons, failed = Counter(), Counter(), []
    for case in ElementTree.parse(report).iter("testcase"):
        skip = case.find("skipped")
        bad = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        counts["failed" if bad is not None else "skipped" if skip is not None else "passed"] += 1
        if bad is not None:
            failed.append(f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}: {bad.get('message', '')[:300]}")
        elif skip is not None:
            reasons[re.sub(r"\s+", " ", skip.get("message", ""))[:110]] += 1
    return counts, reasons, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="+", help="'installed', or a version such as 5.17.0")
    parser.add_argument("-k", default="", help="only tests whose name fits, as pytest's -k")
    asked = parser.parse_args()
    bad = 0
    for word in asked.versions:
        version = installed_version("transformers") if word == "installed" else word
        counts, reasons, failed = run(version, ["-k", asked.k] if asked.k else [])
        print(f"\ntransformers {version}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped (without parts of tests)")
        for reason, count in reasons.most_common():
            print(f"  {count:3d} skipped: {reason}")
        for line in failed:
            print(f"  failed: {line}")
        bad += counts["failed"] + (not counts["passed"])
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
