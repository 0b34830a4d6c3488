"""`mmgpt data inspect SOURCE` -> counts, lengths, first samples and bad samples on the terminal, and a sheet of pictures."""

import argparse


def add_data(commands) -> None:
    from mmgpt.cli import command, positive  # they are there by the time that it adds its commands

    summary = "Looks at data: mmgpt data inspect SOURCE."
    kinds = commands.add_parser("data", help=summary, description=summary).add_subparsers(metavar="WHAT", required=True)
    about = "Counts, lengths, first samples and bad samples of a folder, .jsonl, .parquet, .tar, a pattern of them, or hub:owner/name."
    added = command(kinds, "inspect", data, about, example="mmgpt data inspect 'shards/*.tar' -o sheet.png")
    added.add_argument("source", metavar="SOURCE", help="what the recipe documents takes as data=")
    added.add_argument("--limit", type=positive, default=1000, metavar="N", help="samples that are read; 1000 if left out")
    added.add_argument("--text", default="", metavar="COLUMN", help="the column of words, where it is not text, caption or label")
    added.add_argument("-o", "--out", metavar="FILE", help="write a sheet of the first pictures, for example sheet.png")
    added.add_argument("--checkpoint", default="emoji", metavar="NAME", help="whose positions are counted; emoji if left out")


def data(options: argparse.Namespace) -> None:
    import mmgpt
    from mmgpt.data.inspect import inspect, report, sheet
    from mmgpt.data.samples import Form
    from mmgpt.data.sources import open_source

    source = open_source(options.source, options.text)
    found = inspect(source, Form(text=options.text), mmgpt.load(options.checkpoint).write, options.limit)
    print(report(source, found))
    if options.out:
        print(mmgpt.save_picture(sheet(found), options.out))
