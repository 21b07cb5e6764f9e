import numpy as np
import pytest

from sar_gen.settings import Settings
from tests.open_data.server import serve


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", runs=tmp_path / "runs")


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def cog(tmp_path_factory):
    """Return a maker of cloud-optimised GeoTIFFs as bytes: tiles of 256, UTM zone 32 north unless told."""
    rasterio = pytest.importorskip("rasterio")

    folder = tmp_path_factory.mktemp("cog")

    def make(pixels, left, top, step, *, crs="EPSG:32632", nodata=None):
        path = folder / "cog.tif"
        with rasterio.open(
            path, "w", driver="COG", height=pixels.shape[0], width=pixels.shape[1], count=1, dtype=pixels.dtype,
            crs=crs, transform=rasterio.transform.from_origin(left, top, step, step), nodata=nodata, blocksize=256,
            compress="deflate", overviews="none",
        ) as out:  # fmt: skip
            out.write(pixels, 1)
        return path.read_bytes()

    return make


def speckle(shape, seed=0, mean=0.1, looks=4):
    """Power with speckle, as float32."""
    generator = np.random.default_rng(seed)
    return (mean * generator.gamma(looks, 1 / looks, shape)).astype(np.float32)
