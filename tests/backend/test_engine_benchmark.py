# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines' benchmark on a few splats: it runs, its figures add up, its peers draw the truth."""

import re

import pytest
import torch
from scenes import SAMPLE
from test_rendering import assert_conforms, make_camera, make_gaussians

from unified_lift.__main__ import main
from unified_lift.benchmark import engines
from unified_lift.benchmark.engine_report import useful_work
from unified_lift.benchmark.engines import Plan, Scene, count_pairs, load_scene, peak_megabytes
from unified_lift.benchmark.peers import PEERS, load_peer
from unified_lift.checkpoint import GEOMETRY_FILE
from unified_lift.config import GeometryConfig
from unified_lift.gaussians import to_splats
from unified_lift.ply import write_ply
from unified_lift.protocol import SilentReport
from unified_lift.rendering.cpu import CpuEngine


def some_splats(num=300):
    sh = {"sh0": torch.rand(num, 1, 3), "shN": torch.zeros(num, 3, 3)}
    return make_gaussians(num) | sh


@pytest.fixture
def small_plan(monkeypatch):
    """A view and repeats of a second."""
    small = {"side": 40, "repeats": 1, "small_side": 16, "small_count": 100}
    defaults = [small.get(name, getattr(Plan, name)) for name in Plan.__dataclass_fields__]
    monkeypatch.setattr(Plan.__init__, "__defaults__", tuple(defaults))


@pytest.mark.parametrize("with_capture", [True, False])
def test_the_command_writes_all_tables(tmp_path, small_plan, with_capture):
    splat, report = tmp_path / "some.ply", tmp_path / "report.md"
    write_ply(splat, to_splats(some_splats()))
    source = [SAMPLE, "--splat", splat] if with_capture else [splat]
    words = ["benchmark", "engine", *source, "--out", report]
    assert main([str(word) for word in words]) == 0
    text = report.read_text(encoding="utf-8")
    assert f"300 splats, `some.ply`{', of `messy8`' if with_capture else ''}, at 40 x 30" in text
    for threads in (1, 2):
        assert len(re.findall(rf"\| native core \| {threads} \| [\d.]+ \| [\d.]+ \|", text)) == 2
    assert re.search(r"\| torch reference \| [\d.]+ \| [\d.]+ \| [\d.]+ \| 1 x as long \|", text)
    for share, pixels in ((75, "40 x 30"), (150, "40 x 30"), (300, "20 x 15"), (300, "80 x 60")):
        assert f"| {share} | {pixels} | 19 | native core |" in text
    for name, (module, _, _) in PEERS.items():
        installed = f"| {name} | 1 |" in text
        assert installed or f"- {name} is not installed ('pip install" in text, module


def test_splats_are_trained_once_where_none_are_given(tmp_path, monkeypatch):
    short = GeometryConfig(longest_side=40, iterations=3, max_gaussians=2000)
    monkeypatch.setitem(engines.PRESETS, "draft", short)
    scene = load_scene(SAMPLE, None, tmp_path, 40, SilentReport())
    assert scene.about == "trained with `draft`, of `messy8`"
    assert max(scene.camera.width, scene.camera.height) == 40
    written = (tmp_path / GEOMETRY_FILE).stat().st_mtime_ns
    again = load_scene(SAMPLE, None, tmp_path, 40, SilentReport())
    assert (tmp_path / GEOMETRY_FILE).stat().st_mtime_ns == written
    assert torch.equal(again.gaussians["means"], scene.gaussians["means"])


def test_pairs_are_those_that_blend():
    """One splat that covers all is a pair at every pixel; one that is too faint is none."""
    camera = make_camera(32, 24)
    wide = {name: t[:1] for name, t in some_splats().items()}
    wide |= {"means": torch.zeros(1, 3), "scales": torch.full((1, 3), 4.0)}
    wide["opacities"] = torch.zeros(1)
    assert count_pairs(Scene(wide, camera, "")) == 32 * 24
    wide["opacities"] = torch.full((1,), -9.0)
    assert count_pairs(Scene(wide, camera, "")) == 0
    assert useful_work(10, 3) == (360, 580)


def test_memory_is_what_a_call_holds_at_most():
    held = peak_megabytes(lambda: torch.ones(30, 1 << 18))
    assert held is None or 28 < held < 34  # the kernel counts pages in batches


@pytest.mark.parametrize("num_channels", [3, 19])
@pytest.mark.parametrize("name", PEERS)
def test_peers_draw_what_the_reference_draws(name, num_channels):
    pytest.importorskip(PEERS[name][0])
    engine = load_peer(name, 1)
    generator = torch.Generator().manual_seed(7)
    tensors = make_gaussians(200)
    tensors["channels"] = torch.randn(200, num_channels, generator=generator)
    assert_conforms(engine, "rasterize", tensors, make_camera())


def test_gsplats_torch_parts_project_and_shade_like_the_core():
    pytest.importorskip("gsplat.cuda._torch_impl")
    from unified_lift.rendering.gsplat import project_in_torch

    gaussians, camera = some_splats(1), make_camera()
    gaussians |= {"means": torch.zeros(1, 3), "opacities": torch.full((1,), 9.0)}
    names = ("means", "quats", "scales", "sh0", "shN")
    inputs = {name: gaussians[name] for name in names}
    engine = CpuEngine()
    means2d, _, colors = project_in_torch(**inputs, camera=camera, config=engine.config)
    render = engine.render(**gaussians, camera=camera)
    x, y = means2d[0].floor().int().tolist()
    drawn = render.channels[y, x] / render.alphas[y, x]
    assert torch.allclose(drawn, colors[0], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--out", "r.md"], "There is no nowhere"),
        (["--out", "report.txt"], "is no report"),
        (["--out", "notes.md"], "is no report of a benchmark"),
        (["--out", "capture.md"], "is a capture"),
    ],
)
def test_what_cannot_be_measured_is_a_clear_error(words, message, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("# Mine")
    (tmp_path / "capture" / "gt").mkdir(parents=True)
    assert main(["benchmark", "engine", *words]) == 1
    assert message in caplog.text
    assert (tmp_path / "notes.md").read_text() == "# Mine"


def test_a_file_without_splats_is_refused(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    none = {name: value[:0] for name, value in some_splats(1).items()}
    write_ply(tmp_path / "none.ply", to_splats(none))
    assert main(["benchmark", "engine", "none.ply", "--out", "r.md"]) == 1
    assert "none.ply holds no splats." in caplog.text


def test_a_folder_of_that_name_is_a_suite_as_any(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engine").mkdir()
    assert main(["benchmark", "./engine", "--out", "report.md"]) == 1
    assert f"{tmp_path / 'engine'}" in caplog.text
