from __future__ import annotations

import pytest
import torch
from torch import tensor

from hatrack.methods.dwa import DWA
from hatrack.methods.dwa.analysis import cosine_similarities, relatedness, task_profile
from support.toys import TASKS, make


@pytest.mark.parametrize("chunk", [2**24, 700])
def test_a_profile_is_the_mean_over_the_test_samples(chunk: int) -> None:
    method = make("dwa", "deep", chunk_entries=chunk)
    assert isinstance(method, DWA)
    method.begin_task(TASKS[0])
    profile = task_profile(method.network, TASKS[0])
    x = TASKS[0].test.load()[0]
    with torch.no_grad():
        embedding = method.network.run(x, ["first"]).embedding
        (layer,) = method.network.backbone.layers().values()  # type: ignore[union-attr,operator]
        masks = layer.masks(embedding)
    torch.testing.assert_close(profile.embedding, embedding.mean(dim=0))
    torch.testing.assert_close(profile.masks, masks.mean(dim=0).flatten())


def test_cosines_by_hand() -> None:
    vectors = [tensor([2.0, 0.0]), tensor([0.0, 1.0]), tensor([-1.0, 0.0])]
    assert cosine_similarities(vectors).tolist() == [[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
    shifted = [vector + tensor([10.0, 10.0]) for vector in (tensor([1.0, 0.0]), tensor([-1.0, 0.0]))]
    assert float(cosine_similarities(shifted)[0, 1]) > 0.98
    assert float(cosine_similarities(shifted, centred=True)[0, 1]) == pytest.approx(-1.0)


def test_relatedness_by_hand() -> None:
    similarities = tensor([[1.0, 0.9, 0.1, 0.2], [0.9, 1.0, 0.3, 0.2], [0.1, 0.3, 1.0, 0.5], [0.2, 0.2, 0.5, 1.0]])
    result = relatedness(similarities, [(0, 1), (3, 2)])
    assert result.related == pytest.approx(0.7)
    assert result.unrelated == pytest.approx((0.1 + 0.2 + 0.3 + 0.2) / 4)
    assert result.pairings == pytest.approx(1 / 3)  # the best of the three ways to pair four tasks up
    assert relatedness(similarities, [(0, 2), (1, 3)]).pairings == pytest.approx(1.0)
    assert relatedness(similarities, [(0, 1)]).pairings is None


def test_the_probability_is_exact_for_six_tasks() -> None:
    similarities = torch.eye(6)
    similarities[0, 1] = similarities[1, 0] = 1.0
    # 3 of the 15 pairings contain the one pair that counts
    assert relatedness(similarities, [(0, 1), (2, 3), (4, 5)]).pairings == pytest.approx(3 / 15)
