"""Fixed maps of inputs to features that all tasks share; they hold no data.

They are drawn from a seed, or read a part of the backbone that is never trained.
"""

from __future__ import annotations

import abc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hatrack.errors import InputError
from hatrack.recognition.backbone_parts import AttachedBackbone, answer_of, named, require_untrained
from hatrack.support.inputs import Inputs, is_numbers
from hatrack.support.ranges import require_range, require_types

__all__ = [
    "FeatureMap",
    "RandomFilters",
    "RandomUnits",
    "UntrainedPart",
    "default_feature_map",
    "feature_map_from",
]


class FeatureMap(abc.ABC):
    """Pure function of numbers that are read off inputs; for most maps these are the inputs themselves.

    The first feature is always 1, so that sums of products hold sums and counts as well.
    """

    kind: ClassVar[str]
    """Name of the kind of map in files."""

    def suits(self, x: Inputs) -> bool:
        """Return whether inputs are of a kind that numbers can be read off."""
        return is_numbers(x)

    def require_fixed(self, x: Inputs, of: AttachedBackbone) -> None:
        """Check that there are features of samples, which stay what they are, whatever a network learns.

        Args:
            x: a batch, as the backbone takes it, of which a few samples are looked at.
            of: the masks of the network.

        Raises:
            InputError: features would change, or inputs are of a kind that has none.
        """
        if not self.suits(x):
            raise InputError("a feature map is for samples that are one tensor of real numbers or bytes")

    def read(self, x: Inputs, of: AttachedBackbone) -> Tensor:
        """Return the numbers that :meth:`features` is given, ``(N, ...)``: the inputs, samples along the first axis.

        Args:
            x: a batch, as the backbone takes it.
            of: the masks of the network.

        Raises:
            InputError: inputs are no single tensor.
        """
        if not isinstance(x, Tensor):
            raise InputError("tasks are told by their sums where samples are one tensor: scorer=Scorer.DISTANCE")
        return x.movedim(of.interface.batch_axis, 0)

    @abc.abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Return features of samples, float32 ``(N, D)``.

        Args:
            x: samples ``(N, ...)``, real numbers, as :meth:`read` gives them.

        Raises:
            InputError: samples do not have the shape that the map is for.
        """

    @abc.abstractmethod
    def count(self, shape: Sequence[int]) -> int:
        """Return the number of features, D, of samples of a shape."""

    def describe(self) -> str:
        """Return the map as JSON with sorted keys, which :func:`feature_map_from` reads."""
        return json.dumps({"kind": self.kind, **asdict(self)}, sort_keys=True)  # type: ignore[call-overload]


@dataclass(frozen=True)
class RandomFilters(FeatureMap):
    """Features of pictures: random filters on patches of normalised contrast, rectified, and averaged by regions.

    A convolution with filters that nobody has trained, followed by pooling, is a strong basis for a linear classifier
    (Jarrett et al., ICCV 2009; Saxe et al., ICML 2011). Patches are normalised and regions pooled as by Coates, Ng and
    Lee, AISTATS 2011; the root of the means keeps what is frequent from drowning what is rare (Perronnin et al., ECCV
    2010). Multiplying a picture by a number above 0, or adding one, changes no feature.

    Attributes:
        filters: number of filters, at least 1.
        size: height and width of a filter, at least 1.
        regions: rows and columns of regions that filters' answers are averaged over, in overlapping normal windows; at
            least 1.
        largest: pictures of more rows or columns are reduced to so many first, by means of areas; at least ``size``.
        seed: seed of the filters.
    """

    kind: ClassVar[str] = "random-filters"

    filters: int = 112
    size: int = 6
    regions: int = 5
    largest: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        require_range(self, "filters", "size", "regions", least=1)
        require_range(self, "largest", least=self.size)
        require_range(self, "seed", least=0, most=_LARGEST_SEED)

    def count(self, shape: Sequence[int]) -> int:
        """Return the number of features, D, of pictures of a shape ``(C, H, W)``."""
        return 1 + self.filters * self.regions**2

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return features of pictures.

        Args:
            x: pictures ``(N, C, H, W)``, of at least ``size`` rows and columns.

        Returns:
            1, and the features filter by filter, region by region, float32 ``(N, 1 + filters · regions²)``.

        Raises:
            InputError: these are no such pictures.
        """
        if x.dim() != 4 or min(x.shape[2:]) < self.size or x.is_complex():
            raise InputError(
                f"{self.kind} are for pictures (N, C, H, W) of at least {self.size} x {self.size}, not "
                f"{tuple(x.shape)}: give RandomUnits() as the feature map"
            )
        x = x.float()
        height, width = (min(extent, self.largest) for extent in x.shape[2:])
        x = x if x.shape[2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width))
        filters = _filters(self, x.shape[1]).to(x.device)
        rows, columns = (_windows(extent - self.size + 1, self.regions) for extent in (height, width))
        regions = torch.kron(rows, columns).T.contiguous().to(x.device)
        parts = [self._of_few(part, filters, regions) for part in torch.split(x, _AT_ONCE)]
        found = torch.cat(parts) if parts else x.new_zeros(0, self.filters * self.regions**2)
        return F.pad(found, (1, 0), value=1.0)

    def _of_few(self, x: Tensor, filters: Tensor, regions: Tensor) -> Tensor:
        patches = F.unfold(x, self.size)  # (N, C · size², patches)
        patches = patches - patches.mean(1, keepdim=True)
        variance = patches.square().mean(1, keepdim=True)
        usual = variance.mean(2, keepdim=True)  # of the picture, so that flat patches are not blown up to noise
        patches = patches / (variance + _FLATNESS * usual + torch.finfo(x.dtype).tiny).sqrt()
        return torch.matmul(torch.matmul(filters, patches).relu_(), regions).sqrt_().flatten(1)


@dataclass(frozen=True)
class RandomUnits(FeatureMap):
    """Features of vectors: rectified units with random weights, and the numbers themselves.

    As in an extreme learning machine (Huang et al., Neurocomputing 2006). Units see numbers x as asinh(x), which leaves
    small ones as they are and large ones in reach; half of the units have no threshold, so that they serve numbers of
    any scale.

    Attributes:
        units: number of units, at least 1.
        inputs: whether the numbers themselves are features, too.
        seed: seed of weights and thresholds.
    """

    kind: ClassVar[str] = "random-units"

    units: int = 2500
    inputs: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require_range(self, "units", least=1)
        require_range(self, "seed", least=0, most=_LARGEST_SEED)

    def count(self, shape: Sequence[int]) -> int:
        """Return the number of features, D, of samples of a shape."""
        return 1 + self.units + (math.prod(shape) if self.inputs else 0)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return features of samples.

        Args:
            x: samples ``(N, ...)``, whose axes are laid side by side.

        Returns:
            1, the numbers if asked for, and the units, float32 ``(N, D)``.

        Raises:
            InputError: the numbers are complex, or there is none.
        """
        flat = x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
        if x.is_complex() or not flat.shape[1]:
            raise InputError(f"{self.kind} are for real numbers, not {x.dtype} of shape {tuple(x.shape)}")
        flat = flat.float()
        weights, thresholds = (each.to(x.device) for each in _units(self, flat.shape[1]))
        units = torch.addmm(thresholds, flat.asinh(), weights).relu_()
        return F.pad(torch.cat([flat, units] if self.inputs else [units], 1), (1, 0), value=1.0)


@dataclass(frozen=True)
class UntrainedPart(FeatureMap):
    """Features of what a pre-trained, untrained part of the backbone gives, and of random units behind it.

    Random rectified units on the features of a pre-trained model, and a ridge regression on them, are RanPAC (McDonnell
    et al., NeurIPS 2023). The backbone runs without gates, in evaluation mode and without a trace, and only up to the
    part; samples may be all that it takes, such as tokens or several inputs.

    Everything that is computed with until the part has answered must be untrained: it had ``requires_grad=False`` when
    the network was made, which every pass makes sure of. Then no task changes a bit of the features. Weights that
    something else writes there are put back before a network answers, as all that is frozen.

    Attributes:
        module: name of the part in the backbone, as ``backbone.named_modules()`` has it, which gives one tensor for a
            batch, ``(N, F)``, or with further axes, over which means are taken. The empty name stands for the
            features of a backbone that is untrained as a whole.
        units: number of random units, as :class:`RandomUnits` makes them, at least 0; None for 16 F + 64, or as many as
            keep the number of features, D, at 2,801 or below. Where F is above 2,800, None leaves out the numbers
            themselves, and units alone are features.
        unit_axis: axis of what the module gives that counts units, F; the mean is taken over all others but that of the
            samples. None for axis 1 of maps, ``(N, C, H, W)`` and more, and for the last one of all else, such as
            ``(N, tokens, F)``, where padded tokens count as others.
        seed: seed of the units' weights and thresholds.
    """

    kind: ClassVar[str] = "untrained-part"

    module: str
    units: int | None = None
    unit_axis: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("units", "unit_axis", "seed"):
            if not isinstance(getattr(self, name), int | None):
                raise InputError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        if self.units is not None:
            require_range(self, "units", least=0)
        require_range(self, "seed", least=0, most=_LARGEST_SEED)

    def suits(self, x: Inputs) -> bool:
        """Return True: the backbone says what it takes."""
        return True

    def require_fixed(self, x: Inputs, of: AttachedBackbone) -> None:
        """Check that features stay what they are, whatever a network learns, and that every sample has its own.

        Args:
            x: a batch, as the backbone takes it, of which three samples are looked at.
            of: the masks of the network.

        Raises:
            InputError: there is no such module; it is not called, or several times; training moves what it depends on;
                it does not give one tensor of real numbers with a row for every sample; or what it gives for a sample
                depends on others.
        """
        samples = of.interface.several(of.interface.take(x, slice(3)))
        require_untrained(self.module, samples, of)
        twice = of.interface.repeated(of.interface.take(samples, slice(1)), 2)  # a norm over a batch needs two
        together, alone = (self.read(few, of)[:1] for few in (samples, twice))
        if alone.numel() and (together - alone).abs().max() > _ROUNDING * alone.abs().max():
            raise InputError(
                f"what {named(self.module)} gives for a sample depends on the others of its batch, so that nothing "
                "could be told by it: name a module that keeps samples apart, such as one before a norm over the batch"
            )

    def read(self, x: Inputs, of: AttachedBackbone) -> Tensor:
        """Return what the part gives, float32 ``(N, F)``; of further axes the means.

        Args:
            x: a batch, as the backbone takes it.
            of: the masks of the network.

        Raises:
            InputError: there is no such module, the backbone does not call it, or it does not give one tensor of real
                numbers with a row for every sample.
        """
        answer, samples = answer_of(self.module, x, of), of.interface.samples(x)
        part = named(self.module)
        if not isinstance(answer, Tensor) or answer.is_complex() or answer.is_nested or answer.is_sparse:
            kind = answer.dtype if isinstance(answer, Tensor) else type(answer).__name__
            raise InputError(
                f"{part} gives no tensor of real numbers (N, ...), but {kind}: name a module that gives one, such as "
                "one inside it"
            )
        shape = tuple(answer.shape)
        if not shape or shape[0] != samples:
            raise InputError(
                f"{part} gives shape {shape} for a batch of {samples}, not a row for each: name one whose first axis "
                "counts samples"
            )
        if answer.dim() <= 2 and self.unit_axis in (None, 1, -1):
            return answer.float() if answer.dim() == 2 else answer.float().unsqueeze(1)
        axis = self.unit_axis
        if axis is None:
            axis = 1 if answer.dim() > 3 else -1
        if not -answer.dim() < axis < answer.dim() or axis == 0:
            raise InputError(f"{part} gives shape {shape}, which has no axis {axis} of units: choose another unit_axis")
        rest = [each for each in range(1, answer.dim()) if each != axis % answer.dim()]
        return answer.float().mean(rest)

    def count(self, shape: Sequence[int]) -> int:
        """Return the number of features, D, of numbers ``(F,)``."""
        units = self._units_on(math.prod(shape))
        return 1 + math.prod(shape) if units is None else units.count(shape)

    def features(self, x: Tensor) -> Tensor:
        """Return features of what the part gives.

        Args:
            x: its numbers, ``(N, F)``.

        Returns:
            1, the numbers, and the units, float32 ``(N, D)``.
        """
        units = self._units_on(x.shape[1])
        return F.pad(x.float(), (1, 0), value=1.0) if units is None else units.features(x)

    def _units_on(self, numbers: int) -> RandomUnits | None:
        """Return the random units on so many numbers; None for the numbers alone."""
        fits = numbers < _MOST_FEATURES
        usual = min(_MOST_FEATURES - 1 - fits * numbers, 16 * numbers + 64)
        units = usual if self.units is None else self.units
        return RandomUnits(units, fits or self.units is not None, self.seed) if units else None


_LARGEST_SEED = 2**32 - 1
"""Largest seed that NumPy's generator takes."""

_ROUNDING = 1e-3
"""Largest difference between features of a sample alone and among others that may be rounding, in parts of all."""

_AT_ONCE = 8
"""Number of pictures that are filtered at once: their patches' answers fit a CPU's cache, which halves the time."""

_FLATNESS = 0.1
"""Variance that is added to a patch's, in parts of the mean over the picture's patches."""

_MOST_FEATURES = 2801
"""Largest number of features of a default map: sums of a task take 31 MB then."""

_MOST_INPUTS = 256
"""Number of inputs up to which a default map has them as features, too."""


def default_feature_map(shape: Sequence[int]) -> FeatureMap:
    """Return the map for samples of a shape, with fewer features for small samples.

    Args:
        shape: shape of a sample; ``(C, H, W)`` of at least 8 x 8 are taken for pictures, all else for vectors.
    """
    size = math.prod(shape)
    if len(shape) == 3 and min(shape[1:]) >= 8:
        regions = RandomFilters().regions ** 2
        return RandomFilters(filters=min((_MOST_FEATURES - 1) // regions, shape[1] * shape[2] // 4))
    has_inputs = size <= _MOST_INPUTS
    return RandomUnits(units=min(_MOST_FEATURES - 1 - has_inputs * size, 16 * max(size, 1) + 64), inputs=has_inputs)


_KINDS: Mapping[str, type[FeatureMap]] = MappingProxyType(
    {each.kind: each for each in (RandomFilters, RandomUnits, UntrainedPart)}
)


def feature_map_from(described: str) -> FeatureMap:
    """Make the map that :meth:`FeatureMap.describe` described.

    Raises:
        InputError: it is of a kind that this version does not know.
    """
    try:
        settings = json.loads(described)
        return _KINDS[settings.pop("kind")](**settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"sums are of features that this hatrack does not know ({described[:80]}): upgrade it, or calibrate the "
            "tasks anew"
        ) from error


def _drawn(seed: int, *shape: int) -> Tensor:
    """Return standard normal numbers, float32, which are the same in all versions: sums in files rely on them.

    NumPy promises that of this generator (NEP 19); torch does not of its own.
    """
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


@lru_cache(maxsize=8)
def _filters(of: RandomFilters, channels: int) -> Tensor:
    """Return filters without a mean, of length 1, ``(filters, channels · size²)``."""
    drawn = _drawn(of.seed, of.filters, channels * of.size**2)
    drawn = drawn - drawn.mean(1, keepdim=True) if drawn.shape[1] > 1 else drawn
    return F.normalize(drawn, dim=1)


@lru_cache(maxsize=8)
def _units(of: RandomUnits, inputs: int) -> tuple[Tensor, Tensor]:
    """Return weights ``(inputs, units)`` and thresholds ``(units,)``."""
    drawn = _drawn(of.seed, inputs + 1, of.units)
    weights, thresholds = drawn[:-1] / inputs**0.5, drawn[-1].clone()
    thresholds[::2] = 0
    return weights, thresholds


def _windows(places: int, regions: int) -> Tensor:
    """Return a matrix ``(regions, places)`` of normal windows around the middles of stretches of equal length.

    A window's deviation is half a stretch, so that neighbours overlap and small shifts change features smoothly.
    """
    middles = (torch.arange(regions) + 0.5) * (places / regions) - 0.5
    distances = (torch.arange(places) - middles.unsqueeze(1)) / (places / regions / 2)
    windows = torch.exp(-distances.square() / 2)
    return windows / windows.sum(1, keepdim=True)
