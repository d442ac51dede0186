"""Runs the attention kernels on a CPU: `with kernels():`."""

from contextlib import contextmanager
from functools import partial
from unittest import mock

from jax.experimental import pallas
from tokamax._src.ops.attention import pallas_triton, pallas_triton_vjp
from tokamax._src.pallas import block

from hir_jax.model import attention, decode_attention


class _Pallas:
    """The module `pallas` for tokamax's kernels. Its interpreter knows the place in the grid outside of loops alone, so it is
    asked for where a kernel begins."""

    def __getattr__(self, name):
        return getattr(pallas, name)

    def pallas_call(self, kernel, *arguments, grid_spec, compiler_params, **options):
        def begun(*refs):
            self.place = tuple(pallas.program_id(axis) for axis in range(len(grid_spec.grid)))
            return kernel(*refs)

        return pallas.pallas_call(begun, *arguments, grid_spec=grid_spec, interpret=True, **options)

    def program_id(self, axis):
        return self.place[axis]


@contextmanager
def kernels():
    own = _Pallas()
    with (
        mock.patch.object(attention, "splash", partial(attention.splash, interpret=True)),
        mock.patch.object(decode_attention, "_filled_part", partial(decode_attention._filled_part, interpret=True)),
        mock.patch.multiple(block, pl=own, _pids=lambda: own.place),
        mock.patch.object(pallas_triton, "pl", own),
        mock.patch.object(pallas_triton_vjp, "pl", own),
        attention.for_absent_devices(),
    ):
        yield
