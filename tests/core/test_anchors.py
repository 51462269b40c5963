import numpy as np
import pytest

from edged.core import anchors
from edged.core.detection_decoders import anchor_boxes
from edged.core.detection_spec import AnchorGrid, AnchorTable, grid_layers
from tests.real_models import real_model

FACE = AnchorGrid(
    strides=(8, 16, 16, 16),
    min_scale=0.1484375,
    max_scale=0.75,
    aspect_ratios=(1.0,),
    reduced=False,
    fixed_size=True,
)
SSD = AnchorGrid(strides=(16, 32, 64, 100, 150, 300))


@pytest.mark.parametrize(("grid", "size", "count"), [(SSD, 300, 1917), (FACE, 128, 896)])
def test_the_number_of_anchors_is_known_beforehand(grid: AnchorGrid, size: int, count: int) -> None:
    layers = grid_layers(grid)
    assert anchors.count(layers, size, size) == count
    assert anchors.generate(layers, size, size).shape == (count, 4)


def test_the_first_layer_of_an_ssd_has_three_anchors_a_cell() -> None:
    found = anchors.generate(grid_layers(SSD), 300, 300)
    half = np.float32(0.5 / 19)
    assert found[:3, :2].tolist() == [[half, half]] * 3
    assert found[:3, 2:] == pytest.approx(
        np.array([(0.1, 0.1), (0.2 / 2**0.5, 0.2 * 2**0.5), (0.2 * 2**0.5, 0.2 / 2**0.5)])
    )


def test_layers_of_the_same_stride_share_a_grid() -> None:
    first, second = grid_layers(FACE)
    assert (first.stride, len(first.sizes)) == (8, 2)
    assert (second.stride, len(second.sizes)) == (16, 6)
    assert {*first.sizes, *second.sizes} == {(1.0, 1.0)}


def test_a_picture_that_is_no_square_has_more_columns_than_rows() -> None:
    found = anchors.generate([anchors.Layer(16, ((0.5, 0.25),))], 32, 48)
    assert found[:, 0].tolist() == [0.25] * 3 + [0.75] * 3
    assert found[3:, 1] == pytest.approx(np.array([1 / 6, 0.5, 5 / 6]))
    assert found[0, 2:].tolist() == [0.5, 0.25]


def test_anchors_of_a_table_may_be_in_corners() -> None:
    table = AnchorTable(rows=((0.25, 0.0, 0.75, 0.5),), order="yxyx")
    assert anchor_boxes(table, 100, 100).tolist() == [[0.25, 0.5, 0.5, 0.5]]


def test_the_anchors_of_a_real_model_are_those_of_its_parameters() -> None:
    """The op of the model holds its anchors, quantised."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = interpreter.Interpreter(str(real_model("coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite")))
    model.allocate_tensors()
    (held,) = [each for each in model.get_tensor_details() if each["name"] == "anchors"]
    scale, zero_point = held["quantization"]
    real = (model.get_tensor(held["index"]).astype(np.float32) - zero_point) * scale
    assert np.abs(real - anchors.generate(grid_layers(SSD), 300, 300)).max() <= scale
