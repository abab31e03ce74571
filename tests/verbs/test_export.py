import shutil

import pytest
import torch
from safetensors.torch import load_file

from subeight import Coordinates, evaluate, export
from subeight.errors import OutputError
from subeight.models.model import Model

pytestmark = pytest.mark.usefixtures("no_check")


def test_dense_holds_the_very_values_of_the_codes(house, made, tmp_path):
    source = made("gptq")
    result = export(str(source.directory), to="dense", options=house.options(out=tmp_path / "dense"))
    stored = {}
    for path in result.directory.glob("*.safetensors"):
        stored |= load_file(path)
    model = Model(source.directory)
    for linear in model.linears:
        expected = model.weights.read(f"{linear.name}.weight")
        assert torch.equal(stored[f"{linear.name}.weight"], expected.to(stored[f"{linear.name}.weight"].dtype))
    assert result.numbers["bits_per_weight"] == 4.5, "what the codes take, not what dense takes"
    assert result.record.kind == "export"


def test_the_coordinates_go_with_the_checkpoint(house, made, tmp_path):
    own = made("gptq").record.coordinates
    dense = export(str(made("gptq").directory), options=house.options(out=tmp_path / "dense"))
    assert dense.record.coordinates == own
    measured = [
        evaluate(str(path), str(house.base), options=house.options(out=tmp_path / f"e{at}")).record
        for at, path in enumerate((made("gptq").directory, dense.directory))
    ]
    assert measured[0].coordinates == measured[1].coordinates
    assert measured[0].numbers["kl"] == pytest.approx(measured[1].numbers["kl"], rel=1e-4)


def test_another_tools_checkpoint_keeps_its_unknowns(house, made, tmp_path):
    foreign = shutil.copytree(made("rtn").directory, tmp_path / "foreign")
    (foreign / "record.json").unlink()
    result = export(str(foreign), options=house.options(out=tmp_path / "dense"))
    coordinates = result.record.coordinates
    assert coordinates == Coordinates(
        baseline="unknown", recipe=coordinates.recipe, calibration="unknown", stack=coordinates.stack
    )
    measured = evaluate(str(result.directory), str(house.base), options=house.options(out=tmp_path / "e"))
    assert any("baseline of one side is unknown" in warning for warning in measured.record.warnings)


def test_the_same_codes_again_as_compressed_tensors(house, made, tmp_path):
    source = made("rtn").directory
    result = export(str(source), to="compressed-tensors", options=house.options(out=tmp_path / "again"))
    tensors = [{}, {}]
    for found, directory in zip(tensors, (source, result.directory), strict=True):
        for path in directory.glob("*.safetensors"):
            found |= load_file(path)
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_a_full_precision_model_has_no_codes(house, tmp_path):
    with pytest.raises(OutputError, match="not quantized"):
        export(str(house.base), options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_target_is_refused(house, made):
    with pytest.raises(OutputError, match="'onnx' is not a target"):
        export(str(made("rtn").directory), to="onnx", options=house.options())


def test_a_checkpoint_is_not_exported_onto_itself(house, made):
    with pytest.raises(OutputError, match="holds a run of `quantize`"):
        export(str(made("rtn").directory), options=house.options(out=made("rtn").directory))
    assert (made("rtn").directory / "config.json").is_file()
