"""`muxserve up`: manifests of a cluster, served on one machine without one."""

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `muxserve up`."""
    parser.add_argument("-f", "--filename", dest="paths", action="append", required=True,
                        type=Path, metavar="FILE|DIR",
                        help="a manifest, or a folder of them; repeatable")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000,
                        help="port of the OpenAI endpoint on 127.0.0.1; 0 draws a free one "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--data-dir", type=Path, default=None,
                        help="where units keep their files; one running server each "
                        "(default: under the user's state folder)")  # fmt: skip
    parser.add_argument("--keep-going", action="store_true",
                        help="print ready although a model is in a permanent error")  # fmt: skip
    parser.add_argument("--profiles", type=Path, nargs="+", default=[], metavar="FILE",
                        help="step times that muxserve profile measured on this machine; plans and "
                        "predictions count with them")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; the exit code."""
    from mux_cli.profile_check import read_profiles
    from mux_operator.local.serve import Options, serve
    from mux_operator.profiles import Profiles

    catalog = read_profiles(args.profiles, here=True)
    profiles = Profiles.of(catalog.profiles) if catalog is not None else Profiles()
    return serve(Options(paths=tuple(args.paths), port=args.port, data_dir=args.data_dir,
                         keep_going=args.keep_going, profiles=profiles))  # fmt: skip
