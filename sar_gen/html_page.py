"""The frame of the HTML documents that the studio writes: one file, without scripts."""

from __future__ import annotations

from html import escape


def html_page(title: str, style: str, body: str) -> str:
    """Return a document.

    Args:
        title: of the browser's tab, plain text.
        style: CSS.
        body: HTML of the page's main part.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n<body><main>{body}</main></body></html>\n"
    )
