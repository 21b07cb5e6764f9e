"""Real open data as reference sets: Umbra (X band) and Sentinel-1 RTC (C band), read over HTTP by byte ranges.

Nothing here is imported before a set is pulled; ``rasterio`` and ``umbra-py`` are optional extras.
"""
