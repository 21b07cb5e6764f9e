"""Drives the real page in Chromium: ``pytest -m browser``."""
