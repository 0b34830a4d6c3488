"""Words on the command line -> what the library does with them. `mmgpt --help` lists the commands.

A user's mistake is one line on stderr and exit code 2. Nothing heavy is imported before a command needs it.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import mmgpt
from mmgpt import cli_data, cli_eval, cli_io
from mmgpt.errors import InputError, MmgptError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0 done, 2 the user's mistake, 130 stopped by Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):  # a file name or caption that the terminal cannot show is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = parser().parse_args(argv)
        options.run(options)
        sys.stdout.flush()
        return 0
    except MmgptError as error:
        return refused(str(error))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return refused(f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and the space left")
    except KeyboardInterrupt:
        print("mmgpt: stopped", file=sys.stderr)
        return 130


def refused(message: str) -> int:
    print("mmgpt: error:", *message.split(), file=sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    """Mistakes are raised, not printed; `details` is text for the end of --help, made only when it is asked for."""

    def __init__(self, *words, details=None, example: str = "", **settings):
        epilog = f"example:\n  {example}" if example else None
        super().__init__(*words, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)
        self.details = details

    def error(self, message: str):
        raise InputError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self.details()}\n" if self.details else "")


def parser() -> Parser:
    top = Parser("mmgpt", description=mmgpt.__doc__, example='mmgpt draw "a rocket, fluent-3d style" -o rocket.png')
    top.add_argument("--version", action="version", version=f"mmgpt {mmgpt.__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_readings, add_writings, add_chat, add_demo, add_info, add_train, add_eval):
        add(commands)
    cli_data.add_data(commands)
    return top


def command(commands, name: str, run, summary: str, **settings) -> Parser:
    added = commands.add_parser(name, help=summary, description=summary, **settings)
    added.set_defaults(run=run)
    return added


def add_model(added: Parser, positional: bool = False, default: str = "emoji") -> None:
    """The options of every command that loads a model."""
    what = 'a shipped checkpoint ("emoji", "any") or the folder of one'
    if positional:
        added.add_argument("checkpoint", metavar="CHECKPOINT", help=what)
    else:
        added.add_argument("--checkpoint", default=default, metavar="NAME", help=f"{what}; {default} if left out")
    added.add_argument("--weights", choices=("int8", "int4"), help="round the decoder's weights to so many bits (needs torchao)")
    added.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to compute; cpu if left out")


def load(options: argparse.Namespace):
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine shows 0 CUDA devices to torch; leave --device out")
    gpt = mmgpt.load(options.checkpoint, options.device)
    if options.weights:
        from mmgpt.generate.quantised import quantised

        quantised(gpt, options.weights)
    return gpt


# --- caption, transcribe, describe; draw, speak, animate ------------------------------------------------------------------------------


def add_readings(commands) -> None:
    for name, task in cli_io.READINGS.items():
        added = command(commands, name, read_files, task.what, example=task.example)
        added.add_argument("files", nargs="+", metavar="FILE", help=task.files)
        added.add_argument("--json", action="store_true", help=f'print [{{"file": ..., "{task.key}": ...}}, ...]')
        added.add_argument("--prompt", default=task.prompt, help=f'what the model is asked; "{task.prompt}" if left out')
        add_model(added, default=task.checkpoint)
        added.set_defaults(task=task, name=name)


def read_files(options: argparse.Namespace) -> None:
    cli_io.read(options, load, bar)


def write_files(options: argparse.Namespace) -> None:
    cli_io.write(options, load, bar)


def add_writings(commands) -> None:
    for name, task in cli_io.WRITINGS.items():
        added = command(commands, name, write_files, task.what, example=task.example)
        added.add_argument("words", nargs="+", metavar="WORDS", help=task.words)
        added.add_argument("-o", "--out", required=True, metavar="FILE", help=f"{', '.join(task.suffixes)}; of several, FILE-1, FILE-2, ...")
        added.add_argument("-n", "--count", type=positive, default=1, metavar="N", help="how many to make, 1 if left out")
        added.add_argument("--guidance", type=float, metavar="SCALE", help="1 is none; the checkpoint's own if left out")
        added.add_argument("--best-of", type=positive, default=1, metavar="N", help="of each, make N and keep the one that the model reads best")
        added.add_argument("--seed", type=natural, default=0, help="another seed, another result; 0 if left out")
        add_model(added, default=task.checkpoint)
        added.set_defaults(task=task, name=name)


# --- chat -----------------------------------------------------------------------------------------------------------------------------


def add_chat(commands) -> None:
    added = command(commands, "chat", chat, "A conversation; names of files are pictures, /draw WORDS draws.", example="mmgpt chat emoji")
    added.add_argument("-o", "--out", default=".", metavar="FOLDER", help="where drawn pictures go; this folder if left out")
    added.add_argument("--turns", type=natural, metavar="N", help="how many turns the model looks back on; as many as it has learned if left out")
    add_model(added, positional=True)


def chat(options: argparse.Namespace) -> None:
    from mmgpt.chat import HELP, talk

    if not Path(options.out).is_dir():
        raise InputError(f"-o {options.out}: there is no such folder, make it first")
    gpt, alone = load(options), sys.stdin.isatty()
    print(f"{HELP}" if alone else "", end="\n" if alone else "")
    talk(
        gpt,
        asked() if alone else iter(sys.stdin),
        Path(options.out),
        lambda text: print(text, end="", flush=True),
        options.turns,
        sys.stdout.isatty(),
    )


def asked():
    """What a person types, line by line; Ctrl-D is the end."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


# --- demo, info -----------------------------------------------------------------------------------------------------------------------


def add_demo(commands) -> None:
    added = command(commands, "demo", demo, "Captions the example pictures and draws eight prompts.", example="mmgpt demo -o demo")
    added.add_argument("files", nargs="*", metavar="FILE", help="pictures to caption; those of examples/pictures if left out")
    added.add_argument("-o", "--out", default="demo", metavar="FOLDER", help="where the drawings go; demo if left out")
    add_model(added)


def demo(options: argparse.Namespace) -> None:
    from mmgpt.demo import demo

    demo(load(options), options.out, options.files)


def add_info(commands) -> None:
    added = command(commands, "info", info, "Says what is in a checkpoint.", example="mmgpt info emoji")
    add_model(added, positional=True)


def info(options: argparse.Namespace) -> None:
    from mmgpt.hub import find
    from mmgpt.info import info

    print(info(find(options.checkpoint), load(options)))


# --- train ----------------------------------------------------------------------------------------------------------------------------


def add_train(commands) -> None:
    summary = "Trains a recipe's model. Ctrl-C saves; resume=true goes on, resume=auto where there is something to go on from."
    example = "mmgpt train emoji data=emoji.parquet codec=runs/emoji-codec/final minutes=30"
    added = command(commands, "train", train, summary, example=example, details=recipes)
    added.add_argument("recipe", metavar="RECIPE", help="a name from the list below; `mmgpt train list` prints only the list")
    added.add_argument("settings", nargs="*", metavar="key=value", help="what to change of the recipe")


def train(options: argparse.Namespace) -> None:
    if options.recipe == "list":
        print(recipes())
        return
    bare = [word for word in options.settings if "=" not in word]
    if bare:
        raise InputError(f"{bare[0]!r} is no key=value: write for example minutes=30")
    from mmgpt.train.loop import train
    from mmgpt.train.recipes import RECIPES
    from mmgpt.train.show import Show

    if options.recipe not in RECIPES:
        raise InputError(f"no recipe {options.recipe!r}: the {len(RECIPES)} known are {', '.join(RECIPES)}")
    progress_on_stderr()
    job = RECIPES[options.recipe](dict(word.split("=", 1) for word in options.settings))
    try:
        with Show(options.recipe) as show:
            trainer = train(job.task, job.settings, job.out, job.resume, show)
    except KeyboardInterrupt:
        print(f"what was learned is in {job.out}: add resume=true to go on", file=sys.stderr)
        raise
    if trainer.ranks.first:
        print(f"{job.out}/final after {trainer.step} steps and {trainer.spent / 60:.1f} minutes")


def recipes() -> str:
    """Every recipe's own options and settings of the loop, with what they are where nothing is said."""
    from mmgpt.train.recipes import RECIPES
    from mmgpt.train.settings import Settings

    usual, lines = Settings(), ["recipes, and what they are set to:"]
    for name, recipe in RECIPES.items():
        own = [word for word in words_of(recipe.settings) if word not in words_of(usual)]
        lines += ["", f"mmgpt train {name}: {recipe.options.__doc__.splitlines()[0]}".replace("`", "")]
        lines += [f"  {word}" for word in (*words_of(recipe.options), *own)]
    return "\n".join([*lines, "", "all recipes, unless the recipe sets its own:", *(f"  {word}" for word in words_of(usual))])


def words_of(settings) -> list[str]:
    return [f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in vars(settings).items()]


# --- eval -----------------------------------------------------------------------------------------------------------------------------


def add_eval(commands) -> None:
    summary = "Measures a checkpoint: captions, drawings, the image codec, speech, video, or one to the other."
    kinds = commands.add_parser("eval", help=summary, description=summary).add_subparsers(metavar="WHAT", required=True)
    example = "mmgpt eval {} --data emoji.parquet"
    of_captions = command(kinds, "caption", evaluate, "Exact names and groups, beside a nearest neighbour.", example=example.format("caption emoji"))
    of_captions.add_argument("--leave-out", metavar="STYLE", help="the artist whom the model was trained without, for example emojione")
    of_drawings = command(kinds, "draw", evaluate, "How often a judge finds what was asked for.", example=example.format("draw emoji"))
    of_drawings.add_argument("--guidance", type=scales, default=(1.0, 2.0, 3.0, 5.0), metavar="SCALES", help="scales to compare; 1,2,3,5 if left out")
    of_drawings.add_argument("--temperature", type=float, metavar="T", help="of the codes; the checkpoint's own if left out")
    of_drawings.add_argument("--num", type=positive, default=300, help="how many seen concepts to draw; 300 if left out")
    of_drawings.add_argument("--seed", type=natural, default=0)
    of_codec = command(kinds, "codec", evaluate, "What survives codes, by pixels and by a judge.", example=example.format("codec emoji"))
    of_speech = command(kinds, "speech", evaluate, "What is understood, and of what is said.", example="mmgpt eval speech any --data speech")
    of_speech.add_argument("--data", required=True, metavar="FOLDER", help="of speech, as tools/build_speech.py makes it")
    of_speech.add_argument("--voice", default="heart", metavar="NAME", help="the voice whose unseen sentences are heard; heart if left out")
    of_speech.add_argument("--no-judge", action="store_true", help="only what needs no independent recogniser")
    of_video = command(kinds, "video", evaluate, "Are motions named and drawn?", example=example.format("video any") + " --clips clips.parquet")
    of_video.add_argument("--clips", required=True, metavar="FILE", help="clips, as tools/build_clips.py makes them")
    of_video.add_argument("--no-judge", action="store_true", help="only what needs no independent judge")
    of_cross = command(
        kinds, "cross", evaluate, "From a spoken name to a picture, and back.", example=example.format("cross any") + " --speech speech"
    )
    of_cross.add_argument("--speech", required=True, metavar="FOLDER", help="of speech, as tools/build_speech.py makes it")
    of_cross.add_argument("--voice", default="heart", metavar="NAME", help="the voice that says the names; heart if left out")
    of_cross.add_argument("--no-recogniser", action="store_true", help="only the pictures, which need no independent recogniser")
    for added in (of_drawings, of_speech, of_video):
        added.add_argument("--best-of", type=positive, default=1, metavar="N", help="of each, write N and keep the one that the model reads best")
    for added in (of_speech, of_video, of_cross):
        added.add_argument("--num", type=positive, default=100, help="how many of each; 100 if left out")
    each = {"caption": of_captions, "draw": of_drawings, "codec": of_codec, "speech": of_speech, "video": of_video, "cross": of_cross}
    for name, added in each.items():
        added.set_defaults(what=name)
        add_model(added, positional=True)
        if name != "speech":
            added.add_argument("--data", required=True, metavar="FILE", help="emoji.parquet, as tools/build_emoji.py makes it")
        added.add_argument("--json", metavar="FILE", help="write all figures to this file too")


def evaluate(options: argparse.Namespace) -> None:
    from mmgpt.evaluate.report import report

    if options.json and not Path(options.json).parent.is_dir():
        raise InputError(f"--json {options.json}: there is no folder {Path(options.json).parent}, make it first")
    progress_on_stderr()
    result = cli_eval.EVALUATIONS[options.what](options, load)
    print(report(result))
    if options.json:
        Path(options.json).write_text(json.dumps({"what": options.what, "checkpoint": options.checkpoint, **result}, indent=1) + "\n")


# --- words to values, progress --------------------------------------------------------------------------------------------------------


def positive(word: str) -> int:
    if not word.isdecimal() or not 0 < int(word) <= 10_000:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number from 1 to 10000")
    return int(word)


def natural(word: str) -> int:
    if not word.isdecimal() or int(word) >= 2**62:
        raise argparse.ArgumentTypeError(f"{word} is not a whole number from 0 to 2^62 - 1")
    return int(word)


def scales(word: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word} is not a list of numbers such as 1,2,3") from None


def progress_on_stderr() -> None:
    """Progress bars go to stderr, so that results can be piped."""
    import rich

    rich.reconfigure(stderr=True)


@contextmanager
def bar(title: str, count: int):
    """A progress bar on a terminal, nothing elsewhere; call what it gives with how many are done."""
    from rich.progress import Progress

    progress_on_stderr()
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=count)
        yield lambda done: progress.update(task, completed=done)
