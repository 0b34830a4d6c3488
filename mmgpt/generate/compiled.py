"""One id a row -> the vector behind it, and its scores: the step that is taken again and again, compiled where that is asked for.

On a CPU the step is a program ahead of time (AOTInductor): it is called without the guards and wrappers that cost a small model as much time
as its products do. How it multiplies depends on how many rows there are, see `Sums` and `packs`.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map

from mmgpt.decoders.attention import grouped
from mmgpt.decoders.cache import Cache
from mmgpt.errors import InputError
from mmgpt.script import Span
from mmgpt.types import Stream

BUCKET = 64  # columns by which the part of the cache that a step reads grows
PACKED = 2**29  # bytes of weights that are kept a second time, as packed blocks
WORTH = 256  # ids in a span of which a program is made
MANY = 8  # rows with which it is tried whether packed weights are faster


@dataclass
class Columns:
    """The cache of a step, and who reads what in it, of tensors alone: nothing that changes from step to step is a number to the compiler.

    Each row writes at its own column, and all read the first S of C; what a row may not read has a `mask` of -inf.
    """

    k: Sequence[Float[Tensor, "B K C E"]]
    v: Sequence[Float[Tensor, "B K C E"]]
    column_B: Int[Tensor, "B"]
    mask_B11S: Float[Tensor, "B 1 1 S"]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mine_k, mine_v, columns = self.k[layer], self.v[layer], self.mask_B11S.shape[-1]
        row_B = torch.arange(self.column_B.shape[0], device=k.device)
        mine_k[row_B, :, self.column_B] = k[:, :, 0]
        mine_v[row_B, :, self.column_B] = v[:, :, 0]
        return mine_k[:, :, :columns], mine_v[:, :, :columns]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return grouped(q, k, v, self.mask_B11S) if q.is_cuda else by_sums(q, k, v, self.mask_B11S)


def once(x: Tensor) -> Tensor:
    """The same numbers, which the compiler writes down: it would compute them again wherever they are used, for every row of a matrix."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def by_sums(q_BH1E: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask_B11S: Tensor) -> Tensor:
    """Attention of one query a row, written as sums: the compiler makes loops of them that beat a CPU's kernels for many queries."""
    q_BKGE = rearrange(once(q_BH1E), "b (k g) 1 e -> b k g e", k=k_BKSE.shape[1])
    score_BKGS = (q_BKGE[:, :, :, None] * k_BKSE[:, :, None]).sum(-1) * q_BH1E.shape[-1] ** -0.5 + mask_B11S
    out_BKGE = (score_BKGS.softmax(-1)[..., None] * v_BKSE[:, :, None]).sum(-2)
    return rearrange(out_BKGE, "b k g e -> b (k g) 1 e")


class Body(nn.Module):
    """Tables and decoder, given what a step needs as tensors."""

    def __init__(self, gpt):
        super().__init__()
        self.table, self.tables, self.decoder = gpt.table, gpt.tables, gpt.decoder
        self.spans = {name: gpt.ports[name].writes.ids for name in gpt.tables}
        pairs, axes = gpt.decoder.config.head_width // 2, gpt.decoder.config.position_axes
        place_S = torch.arange(gpt.max_length, device=gpt.device)
        cos_SE, sin_SE = (turn[0, 0] for turn in gpt.decoder.rotation(place_S[None, :, None].expand(1, -1, 3)))
        self.register_buffer("cos_SE", cos_SE)
        self.register_buffer("sin_SE", sin_SE)
        self.register_buffer("axis_E", (torch.arange(2 * pairs, device=gpt.device) % pairs) % axes)

    def forward(self, ids_B1: Tensor, position_B3: Tensor, column_B: Tensor, place_S: Tensor, k: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
        x_B1D = self.table(ids_B1)
        for name, table in self.tables.items():
            ids = self.spans[name]
            mine_B1 = (ids_B1 >= ids.start) & (ids_B1 < ids.stop)
            vectors_BD = table((ids_B1[:, 0] - ids.start).clamp(0, len(ids) - 1)).to(x_B1D.dtype)
            x_B1D = torch.where(mine_B1[..., None], vectors_BD[:, None], x_B1D)
        at_BE = position_B3.index_select(1, self.axis_E)
        cos, sin = (once(turn.gather(0, at_BE)[:, None, None].to(x_B1D.dtype)) for turn in (self.cos_SE, self.sin_SE))
        later_BS = place_S > column_B[:, None]
        mask_BS = torch.zeros_like(later_BS, dtype=x_B1D.dtype).masked_fill(later_BS, -torch.inf)
        columns = Columns(k, v, column_B, mask_BS[:, None, None])
        return self.decoder.turned(once(x_B1D), cos, sin, columns, columns)[:, 0]


class Scores(nn.Module):
    """A head, for one span of ids."""

    def __init__(self, head: nn.Module, span: Span):
        super().__init__()
        self.head, self.span, self.table = head, span, getattr(head, "table", None)  # a table that is only seen is no part of a head

    def forward(self, h_ND: Tensor) -> Tensor:
        return self.head.logits(h_ND, self.span)


class Sums(TorchFunctionMode):
    """Products of one row written as sums: the compiler's loop over them reads memory as fast as it comes, a library's product does not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and args[0].dtype == torch.float32:
            x, weight, *bias = args
            sums = (once(x)[..., None, :] * weight).sum(-1)
            return sums + bias[0] if bias and bias[0] is not None else sums
        return func(*args, **(kwargs or {}))


class Seen(TorchFunctionMode):
    """Notes the matrices that vectors are multiplied with."""

    def __init__(self):
        super().__init__()
        self.matrices: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            self.matrices.append(args[1].detach())
        return func(*args, **(kwargs or {}))


def packs(module: nn.Module, example: tuple) -> bool:
    """Whether packed weights make the module's products faster: libraries and processors differ, so that it is tried."""
    with Seen() as seen:
        module(*example)
    if sum(matrix.nbytes for matrix in seen.matrices) > PACKED or not torch.backends.mkldnn.is_available():
        return False
    packed = [torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), MANY) for matrix in seen.matrices]
    vectors = [matrix.new_ones(MANY, matrix.shape[1]) for matrix in seen.matrices]

    def plainly():
        return [F.linear(x, matrix) for x, matrix in zip(vectors, seen.matrices, strict=True)]

    def in_blocks():
        return [torch.ops.mkldnn._linear_pointwise(x, matrix, None, "none", [], "") for x, matrix in zip(vectors, packed, strict=True)]

    times = [(seconds(plainly), seconds(in_blocks)) for _ in range(9)]
    return median(time for _, time in times) < median(time for time, _ in times)


def seconds(call: Callable) -> float:
    begin_at = perf_counter()
    call()
    return perf_counter() - begin_at


class Program:
    """A module as a program ahead of time, for one row or for several. It reads the module's weights where they lie, or packed copies of them."""

    def __init__(self, module: nn.Module, example: tuple, dynamic: tuple, one: bool):
        self.weights = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.inference_mode(False), torch.no_grad():
            example = tree_map(torch.clone, example)  # tensors that know versions
            self.packed = not one and packs(module, example)
            with Sums() if one else nullcontext():
                exported = torch.export.export(module, example, dynamic_shapes=dynamic)
            loaded = built(exported, {"freezing": True} if self.packed else {"aot_inductor.package_constants_in_so": False})
        self.names, self.load, self.run = loaded.get_constant_fqns(), loaded.load_constants, loaded.loader.run
        self.connect()

    def connect(self) -> None:
        self.read = self.known()
        if not self.packed:
            self.load({name: self.weights[name].detach() for name in self.names}, check_full_update=True, user_managed=True)

    def known(self) -> list[tuple]:
        """Where the weights lie, as what and, if they were copied, which ones they were."""
        return [(w.data_ptr(), w.dtype, 0 if w.is_inference() or not self.packed else w._version) for w in self.weights.values()]

    def holds(self) -> bool:
        """Whether it still reads the model's weights; those that lie elsewhere by now are read there."""
        known = self.known()
        if known == self.read:
            return True
        if self.packed or [dtype for _, dtype, _ in known] != [dtype for _, dtype, _ in self.read]:
            return False
        self.connect()
        return True

    def __call__(self, *given: Tensor) -> Tensor:
        return self.run([*given])[0]


def built(exported: torch.export.ExportedProgram, settings: dict):
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    with tempfile.TemporaryDirectory() as folder:
        try:
            return aoti_load_package(aoti_compile_and_package(exported, package_path=f"{folder}/step.pt2", inductor_configs=settings))
        except Exception as error:
            raise InputError(
                f"the step could not be compiled, which on a CPU takes a C++ compiler (c++ or g++): use compile=False; {error}"
            ) from error


class Kernels:
    """A module compiled as it is called, for a GPU."""

    def __init__(self, module: nn.Module):
        self.call, self.seen = torch.compile(module, fullgraph=True), set()

    def __call__(self, *given: Tensor) -> Tensor:
        *small, place_S = given[:4]
        held = given[4:]
        parts = *given[:4], held[: len(held) // 2], held[len(held) // 2 :]
        kind = (len(small[0]) == 1, held[0].shape[1:], held[0].dtype)
        if kind in self.seen:
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):  # nothing else can have changed
                return self.call(*parts)
        self.seen.add(kind)
        for axis, some in ((0, (*small, *held) if len(small[0]) > 1 else ()), (0, [place_S]), (2, held)):
            for part in some:
                torch._dynamo.mark_dynamic(part, axis)
        return self.call(*parts)


class Step:
    """The stream that a step reads, the cache and the number of its rows -> the vectors; and vectors -> scores of what may come next."""

    def __init__(self, gpt, compile: bool = False):
        self.gpt, self.programs = gpt, {}
        self.compiled = compile and not gpt.decoder.config.window
        if self.compiled:
            if gpt.device.type == "cpu" and any(map(is_traceable_wrapper_subclass, gpt.decoder.parameters())):
                raise InputError("compile=True of a model whose weights are whole numbers: on a CPU use compile=False")
            self.body, self.place_S = Body(gpt), torch.arange(gpt.max_length + BUCKET, device=gpt.device)
            self.views: tuple = (None, [])

    def __call__(self, stream: Stream, cache: Cache, rows: int) -> Float[Tensor, "B T D"]:
        if not self.compiled or stream.ids_BT.shape[1] != 1:
            return self.gpt(stream, cache[:rows])
        return self.begin(stream.position_BT3, stream.block_BT, cache, rows)(0, stream.ids_BT)[:, None]

    def begin(
        self, position_BN3: Int[Tensor, "B N 3"], block_BN: Int[Tensor, "B N"], cache: Cache, rows: int
    ) -> Callable[[int, Int[Tensor, "B 1"]], Float[Tensor, "B D"]]:
        """N steps of one id a row: what is known of all of them is done at once. Take them in turn, n = 0, 1 ..., as many as are wanted."""
        if not self.compiled:
            document_B1 = torch.ones_like(block_BN[:, :1])

            def eager(n, ids_B1):
                return self.gpt(Stream(ids_B1, document_B1, block_BN[:, n : n + 1], position_BN3[:, n : n + 1]), cache[:rows])[:, 0]

            return eager
        used_R, held = cache.used_R[:rows], self.held(cache, rows)
        column_NB = (torch.arange(block_BN.shape[1])[:, None] + torch.from_numpy(used_R)).to(self.gpt.device)
        cache.block_RS[:rows].scatter_(1, column_NB.T, block_BN)
        column, position, longest = column_NB.unbind(), position_BN3.transpose(0, 1).contiguous().unbind(), int(used_R.max())
        program = self.programs.get(key := ("body", rows == 1))

        def read(n, ids_B1):
            nonlocal program
            given = ids_B1, position[n], column[n], self.place_S[: -(-(longest + n + 1) // BUCKET) * BUCKET], *held
            if program is None:
                program = self.programs[key] = Kernels(self.body) if ids_B1.is_cuda else self.program_of_body(*given)
            used_R[:] += 1
            return program(*given)

        return read

    def scores(self, name: str, span: Span, h_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """A head's scores of one span."""
        if not self.compiled or h_ND.is_cuda or len(span) < WORTH:
            return self.gpt.heads[name].logits(h_ND, span)
        key = name, span, len(h_ND) == 1
        if key not in self.programs:
            batch = None if len(h_ND) == 1 else {0: Dim("N", min=2)}
            self.programs[key] = Program(Scores(self.gpt.heads[name], span), (h_ND,), (batch,), len(h_ND) == 1)
        return self.programs[key](h_ND.contiguous())

    def program_of_body(self, ids_B1, position_B3, column_B, place_S, *held: Tensor) -> Program:
        layers, rows = len(held) // 2, {0: Dim("B", min=2)} if len(ids_B1) > 1 else {}
        columns, length = {0: Dim("S", min=2)}, rows | {2: Dim("C", min=2)}
        example = ids_B1, position_B3, column_B, place_S, held[:layers], held[layers:]
        return Program(self.body, example, (rows, rows, rows, columns, (length,) * layers, (length,) * layers), len(ids_B1) == 1)

    def held(self, cache: Cache, rows: int) -> list[Tensor]:
        """Keys and values of the rows, layer by layer: the same tensors as long as nothing about them changes."""
        key = (cache.k[0].data_ptr(), rows)
        if self.views[0] != key:
            self.views = key, [one[:rows] for one in (*cache.k, *cache.v)]
        return self.views[1]

    def refresh(self) -> None:
        """Programs that hold copies of other weights than the model's go, and are made again."""
        self.programs = {key: program for key, program in self.programs.items() if isinstance(program, Kernels) or program.holds()}
