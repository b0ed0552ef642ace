"""The `vllm` command."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys

from . import config as configuration
from .environment import check_libraries
from .log import EngineError, failure, line
from .options import load_table, make_parser
from .runtime import Engine


def version(table_version: str) -> str:
    """Version of the installed `vllm` package, else of the option table."""
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return table_version


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status is the engine's: 0, 1 for a failure, 2 for bad arguments."""
    argv = sys.argv[1:] if argv is None else argv
    table = load_table()
    release = version(table["version"])
    parser = make_parser(table, release)
    try:
        if argv[:1] == ["serve"] and not {"-h", "--help"} & set(argv):
            check_libraries()  # the plugin is imported to build the parser, before anything is parsed
        args = parser.parse_args(argv)
        if args.subparser != "serve":
            parser.print_help()
            return 0
        line("APIServer", f"vLLM API server version {release} (engine simulator of the Ascent sandbox)",
             source="utils.py:299")  # fmt: skip
        line("APIServer", "Platform plugin ascend is activated", source="__init__.py:207")
        settings = configuration.settings(args, table)

        async def serve() -> int:
            return await Engine(settings, release).run()

        return asyncio.run(serve())
    except EngineError as error:
        failure(error)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
