"""What the page says when something goes wrong: one sentence, never a traceback."""

from __future__ import annotations

import logging

from sar_gen.errors import SarGenError

logger = logging.getLogger(__name__)


def told(error: Exception) -> str:
    """Return one sentence on a failure; one that nobody foresaw is also logged with its traceback."""
    if isinstance(error, SarGenError):
        return str(error)
    logger.error("Unexpected failure", exc_info=error)
    text = " ".join(str(error).split())[:300]
    return (
        f"Something unexpected failed ({type(error).__name__}{': ' + text if text else ''}); the log has the details."
    )
