"""Opens a page in Chromium, no screen: `python -m tests.inspect.browser PAGE WIDTH HEIGHT [dark]`.

Reads JavaScript expressions from stdin, a line each, evaluates them one after the other in the
page, and prints {"values", "console", "requests"} as JSON. `shot FILE.png` takes a screenshot.
Chromium comes with `pip install PyQt6-WebEngine`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

DARK = " --blink-settings=preferredColorScheme=0" if "dark" in sys.argv else ""
FLAGS = "--no-sandbox --disable-gpu" + DARK
# Read when the libraries below are loaded.
os.environ |= {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": FLAGS}

from PyQt6.QtCore import QEventLoop, QTimer, QUrl  # noqa: E402
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor  # noqa: E402
from PyQt6.QtWebEngineWidgets import QWebEngineView  # noqa: E402
from PyQt6.QtWidgets import QApplication  # noqa: E402


class Page(QWebEnginePage):
    """Remembers what the page wrote to the console."""

    def __init__(self, parent: QWebEngineView) -> None:
        super().__init__(parent)
        self.console: list[str] = []

    def javaScriptConsoleMessage(self, level, message, line, source) -> None:  # type: ignore[no-untyped-def]
        self.console.append(f"{level.name}: {message} (line {line})")


class Requests(QWebEngineUrlRequestInterceptor):
    """Remembers and refuses what is neither a file nor part of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def interceptRequest(self, info) -> None:  # type: ignore[no-untyped-def]
        if info.requestUrl().scheme() not in ("file", "data"):
            self.seen.append(info.requestUrl().toString())
            info.block(True)


def wait(milliseconds: int) -> None:
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def evaluated(page: Page, expression: str) -> object:
    loop, values = QEventLoop(), list[object]()
    page.runJavaScript(expression, lambda value: (values.append(value), loop.quit()))
    loop.exec()
    return values[0]


def main(path: str, width: str, height: str) -> None:
    app = QApplication(sys.argv[:1])
    view, requests = QWebEngineView(), Requests()
    page = Page(view)
    page.setUrlRequestInterceptor(requests)
    view.setPage(page)
    view.resize(int(width), int(height))
    view.show()
    loaded = QEventLoop()
    page.loadFinished.connect(loaded.quit)
    page.load(QUrl.fromLocalFile(str(Path(path).absolute())))
    loaded.exec()
    values = []
    for line in sys.stdin.read().splitlines():
        wait(400)
        if line.startswith("shot "):
            view.grab().save(line.removeprefix("shot "))
        else:
            values.append(evaluated(page, line))
    print(json.dumps({"values": values, "console": page.console, "requests": requests.seen}))
    sys.stdout.flush()
    # Chromium's own processes end with this one; its orderly end can hang without a screen.
    del app
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:4])
