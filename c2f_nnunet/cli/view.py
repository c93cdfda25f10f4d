"""c2f_view: the scans of a report with the contours over them, in the browser."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import entry, new_parser


def port(text: str) -> int:
    """An argparse type: a TCP port, 0 for any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def parser() -> argparse.ArgumentParser:
    about = "Look through the scans of a report slice by slice and in 3D, in the browser, on this computer alone."
    p = new_parser("c2f_view", about, "c2f_view out")
    p.add_argument("folder", type=Path, metavar="OUT", help="output folder of c2f_predict --report, or the crossval folder of a model")
    p.add_argument("--port", type=port, default=0, metavar="N", help="port of the local server (default: any that is free)")
    p.add_argument("--no_browser", action="store_true", help="only print the address")
    return p


def body(args: argparse.Namespace) -> None:
    from ..running.serve import address, open_server
    from ..running.viewing import read_index

    index = read_index(args.folder)
    with open_server(args.folder, args.port) as server:
        print(f"{len(index.cases)} cases at {address(server)} (Ctrl-C ends)", flush=True)
        if not args.no_browser:
            show(address(server))
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # how it is meant to end
            print()


def show(url: str) -> None:
    """Open the page in the user's browser, if there is one beside the terminal."""
    import webbrowser

    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if type(browser) is not webbrowser.GenericBrowser:  # that is what text browsers are, and they would take the terminal
        browser.open(url)


main = entry(parser, body)

if __name__ == "__main__":
    sys.exit(main())
