"""SICD files that sarkit writes, read through sarkit: all three pixel types, windows and the valid area."""

import sys
import warnings

import numpy as np
import pytest

from sar_gen.amplitude import Scale
from sar_gen.errors import InputError
from sar_gen.patches import PixelMeaning, read_patch, read_tiles, read_values

ROWS, COLUMNS = 70, 90
NAMESPACE = "urn:SICD:1.4.0"


def xyz(x, y, z):
    return f"<X>{x}</X><Y>{y}</Y><Z>{z}</Z>"


def sicd_xml(kind, table=None, valid=None, polarisation="V:H"):
    """Return the part of a SICD's XML that a writer and this reader need (not all that the schema asks for)."""
    corners = ((10, 20), (10, 21), (9, 21), (9, 20))
    icp = "".join(
        f'<ICP index="{i}:{name}"><Lat>{lat}</Lat><Lon>{lon}</Lon></ICP>'
        for i, (name, (lat, lon)) in enumerate(zip(("FRFC", "FRLC", "LRLC", "LRFC"), corners, strict=True), 1)
    )
    amplitudes = "".join(f'<Amplitude index="{i}">{value!r}</Amplitude>' for i, value in enumerate(table or []))
    vertices = "".join(
        f'<Vertex index="{i}"><Row>{r}</Row><Col>{c}</Col></Vertex>' for i, (r, c) in enumerate(valid or [], 1)
    )
    return (
        f'<SICD xmlns="{NAMESPACE}"><ImageData><PixelType>{kind}</PixelType>'
        + (f'<AmpTable size="256">{amplitudes}</AmpTable>' if table else "")
        + f"<NumRows>{ROWS}</NumRows><NumCols>{COLUMNS}</NumCols><FirstRow>0</FirstRow><FirstCol>0</FirstCol>"
        "<SCPPixel><Row>35</Row><Col>45</Col></SCPPixel>"
        + (f'<ValidData size="{len(valid)}">{vertices}</ValidData>' if valid else "")
        + f"</ImageData><GeoData><SCP><ECF>{xyz(6378137, 0, 0)}</ECF>"
        "<LLH><Lat>0</Lat><Lon>0</Lon><HAE>0</HAE></LLH></SCP>"
        f"<ImageCorners>{icp}</ImageCorners></GeoData>"
        f"<Grid><Row><UVectECF>{xyz(0, 1, 0)}</UVectECF><SS>1</SS></Row>"
        f"<Col><UVectECF>{xyz(0, 0, 1)}</UVectECF><SS>1</SS></Col></Grid>"
        "<Timeline><CollectStart>2024-01-02T03:04:05.000000Z</CollectStart></Timeline>"
        f"<SCPCOA><ARPPos>{xyz(7378137, -500000, 0)}</ARPPos><ARPVel>{xyz(0, 0, 7500)}</ARPVel>"
        "<SideOfTrack>R</SideOfTrack></SCPCOA>"
        f"<ImageFormation><TxRcvPolarizationProc>{polarisation}</TxRcvPolarizationProc></ImageFormation></SICD>"
    )


def write_sicd(path, pixels, kind, **facts):
    sicd = pytest.importorskip("sarkit.sicd")
    lxml = pytest.importorskip("lxml.etree")
    security = {"security": {"clas": "U"}}
    metadata = sicd.NitfMetadata(
        xmltree=lxml.ElementTree(lxml.fromstring(sicd_xml(kind, **facts))),
        file_header_part={"ostaid": "here"} | security,
        im_subheader_part={"isorce": "made"} | security,
        de_subheader_part=security,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the XML is not all that the schema asks for
        with path.open("wb") as file, sicd.NitfWriter(file, metadata) as writer:
            writer.write_image(pixels)
    return path


@pytest.fixture
def signal():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(ROWS, COLUMNS)) + 1j * rng.normal(size=(ROWS, COLUMNS))).astype(np.complex64)


def test_float_signal_whole_and_by_windows(tmp_path, signal):
    path = write_sicd(tmp_path / "a.nitf", signal, "RE32F_IM32F")
    values, metadata = read_values(path)
    np.testing.assert_array_equal(values, signal)
    assert values.dtype == np.complex64
    assert (metadata["format"], metadata["polarisation"], metadata["range_axis"]) == ("SICD", "VH", 0)
    np.testing.assert_array_equal(read_values(path, window=(11, 22, 30, 40))[0], signal[11:41, 22:62])
    patch = read_patch(path, PixelMeaning("amplitude", Scale(1.0, 1.0, "test")), window=(11, 22, 30, 40))
    np.testing.assert_allclose(patch.amplitude, np.minimum(np.abs(signal[11:41, 22:62]) / 4, 1), rtol=1e-6)
    assert (patch.polarisation, patch.range_axis) == ("VH", 0)


def test_integer_signal(tmp_path, signal):
    pixels = np.empty(signal.shape, [("real", np.int16), ("imag", np.int16)])
    pixels["real"], pixels["imag"] = signal.real * 5000, signal.imag * 5000
    path = write_sicd(tmp_path / "a.nitf", pixels, "RE16I_IM16I")
    np.testing.assert_array_equal(read_values(path)[0], pixels["real"] + 1j * pixels["imag"].astype(np.float32))


@pytest.mark.parametrize("table", [None, [float(np.sqrt(i)) for i in range(256)]])
def test_amplitude_and_phase_of_8_bits(tmp_path, table):
    rng = np.random.default_rng(0)
    pixels = np.empty((ROWS, COLUMNS), [("amp", np.uint8), ("phase", np.uint8)])
    pixels["amp"], pixels["phase"] = rng.integers(0, 256, (2, ROWS, COLUMNS))
    values, _ = read_values(write_sicd(tmp_path / "a.nitf", pixels, "AMP8I_PHS8I", table=table))
    expected = pixels["amp"].astype(np.float64) if table is None else np.sqrt(pixels["amp"].astype(np.float64))
    np.testing.assert_allclose(np.abs(values), expected, rtol=1e-6)
    turned = np.angle(values * np.exp(-2j * np.pi * pixels["phase"] / 256))[pixels["amp"] > 0]
    np.testing.assert_allclose(turned, 0, atol=1e-6)


def test_ground_outside_the_valid_area_is_no_data(tmp_path, signal):
    path = write_sicd(
        tmp_path / "a.nitf", signal, "RE32F_IM32F", valid=[(0, 0), (0, 44), (ROWS - 1, 44), (ROWS - 1, 0)]
    )
    with pytest.raises(InputError, match=rf"{ROWS * 45} of {ROWS * 90} pixels without data \(outside the valid area"):
        read_values(path)
    np.testing.assert_array_equal(read_values(path, window=(0, 0, ROWS, 45))[0], signal[:, :45])
    said = []
    tiles = list(read_tiles(path, side=32, say=said.append))  # complex signal says what it means; pooled over the file
    assert [tile.window for tile in tiles] == [(0, 0, 32, 32), (32, 0, 32, 32)]
    assert "2 of 4 tiles" in said[0]
    assert "2 left out" in said[0]
    valid = np.abs(signal[:, :45]).astype(np.float64)
    assert tiles[0].scale.peak == pytest.approx(valid.mean() + 3 * valid.std(), rel=1e-6)


def test_cut_off(tmp_path, signal):
    path = write_sicd(tmp_path / "a.nitf", signal, "RE32F_IM32F")
    data = path.read_bytes()
    for share in (0.01, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=r"damaged or cut off|not a readable SICD"):
            read_values(path)


def test_a_nitf_without_sarkit_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sarkit.sicd", None)
    (tmp_path / "a.nitf").write_bytes(b"NITF02.10" + bytes(400))
    with pytest.raises(InputError, match=r"needs the package sarkit; pip install sarkit"):
        read_values(tmp_path / "a.nitf")


def test_a_nitf_that_is_no_sicd(tmp_path):
    pytest.importorskip("sarkit.sicd")
    (tmp_path / "a.nitf").write_bytes(b"NITF02.10" + bytes(400))
    with pytest.raises(InputError, match=r"a\.nitf (is|is a NITF file but not)"):
        read_values(tmp_path / "a.nitf")
