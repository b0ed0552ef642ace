"""The `vllm` command."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import sys

from . import config as configuration
from .environment import check_libraries
from .log import EngineError, failure, line
from .options import DEFAULT_RELEASE, deprecated, load_table, make_parser
from .runtime import Engine


def version() -> str:
    """The release that is simulated: SIM_VERSION, else the version of the installed `vllm` package."""
    try:
        return os.environ.get("SIM_VERSION") or importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return DEFAULT_RELEASE


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status is the engine's: 0, 1 for a failure, 2 for bad arguments."""
    argv = sys.argv[1:] if argv is None else argv
    release = version()
    table = load_table(release)
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
        for name in deprecated(table, argv):
            line("APIServer", f"argument '{name}' is deprecated", level="WARNING", source="argparse_utils.py:193")
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
