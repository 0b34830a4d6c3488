"""The shared decoder against plain references, against itself with a cache, and against transformers."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import gap, picture, tiny_gpt
from torch.nn import functional as F

from mmgpt.decoders.attention import BACKENDS, Reading, attend, may_read
from mmgpt.decoders.cache import Cache
from mmgpt.decoders.documents import cuts_of
from mmgpt.decoders.rope import rotate, rotation
from mmgpt.decoders.transformer import Decoder, DecoderConfig
from mmgpt.errors import InputError
from mmgpt.pack import pack
from mmgpt.types import Part

SIZES = {"width": 32, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "head_width": 8, "mlp_width": 48}
eager_flex = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on a CPU: right, but slow


def decoder(seed: int = 0, **changes) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Decoder(DecoderConfig(**SIZES | changes)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(std=0.2 if parameter.ndim == 2 else 0.5)
    return made


def inputs(rows: int, columns: int, width: int = 32, seed: int = 0):
    """Vectors, positions on three axes, and a text-like reading: documents of 1 id a block."""
    generator = torch.Generator().manual_seed(seed)
    x_BTD = torch.randn(rows, columns, width, generator=generator)
    position_BT3 = torch.randint(0, 20, (rows, columns, 3), generator=generator)
    return x_BTD, position_BT3, causal(rows, columns)


def causal(rows: int, columns: int, backend: str = "sdpa") -> Reading:
    ones, order = torch.ones(rows, columns, dtype=torch.long), torch.arange(columns).repeat(rows, 1)
    return Reading(ones, order, ones, order, backend)


# --- who reads whom -------------------------------------------------------------------------------------------------------------------

DOCUMENT = torch.tensor([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]])
BLOCK = torch.tensor([[0, 1, 1, 1, 2, 3, 0, 0, 1, 0, 0], [0, 1, 2, 0, 0, 1, 1, 0, 1, 2, 2]])


def test_golden_reading():
    """document 1 1 1 1 2 with blocks 0 1 1 2 0: the two slots of block 1 read each other; document 2 reads itself."""
    document, block = torch.tensor([[1, 1, 1, 1, 2]]), torch.tensor([[0, 1, 1, 2, 0]])
    rows = ["x....", "xxx..", "xxx..", "xxxx.", "....x"]
    assert may_read(document, block, document, block)[0, 0].tolist() == [[c == "x" for c in row] for row in rows]


def plain(q_BHTE, k_BKSE, v_BKSE, document_BT, block_BT):
    """Attention as it is written in a textbook: one query, one head at a time."""
    out = torch.zeros_like(q_BHTE)
    groups = q_BHTE.shape[1] // k_BKSE.shape[1]
    for b, h, t in torch.cartesian_prod(*[torch.arange(n) for n in q_BHTE.shape[:3]]).tolist():
        seen = [s for s in range(k_BKSE.shape[2]) if document_BT[b, s] == document_BT[b, t] and block_BT[b, s] <= block_BT[b, t]]
        scores = k_BKSE[b, h // groups, seen] @ q_BHTE[b, h, t] / q_BHTE.shape[-1] ** 0.5
        out[b, h, t] = scores.softmax(0) @ v_BKSE[b, h // groups, seen]
    return out


@eager_flex
@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_back_end_is_the_plain_reference(backend, kv_heads):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 11, 16, generator=generator) for heads in (4, kv_heads, kv_heads))
    found = attend(q, k, v, Reading(DOCUMENT, BLOCK, DOCUMENT, BLOCK, backend))
    assert gap(found, plain(q, k, v, DOCUMENT, BLOCK)) < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_documents_read_one_by_one_are_the_mask(seed):
    """Forward and backward, with blocks read as a whole, padding and documents of one position; what nobody reads counts for nothing."""
    draw = random.Random(seed)
    document_BT, block_BT = torch.zeros(2, 3, 40, dtype=torch.long)
    for row in range(3):
        column, number, end = 0, 0, 40 - draw.choice([0, 5, 20])
        while column < end:
            length, number = min(draw.choice([1, 2, 7, 19]), 40 - column), number + 1
            opens = torch.tensor([0] + [draw.random() < draw.choice([0.5, 1.0]) for _ in range(length - 1)])
            document_BT[row, column : column + length], block_BT[row, column : column + length] = number, opens.cumsum(0)
            column += length
    q, k, v, g = (torch.randn(3, heads, 40, 8, generator=torch.Generator().manual_seed(seed + n)) for n, heads in enumerate((4, 2, 2, 4)))
    real, cuts_N4, found = (document_BT > 0)[:, None, :, None], cuts_of(document_BT, block_BT), []
    for cuts in (None, cuts_N4):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, Reading(document_BT, block_BT, document_BT, block_BT, cuts_N4=cuts)) * real
        found.append([out, *torch.autograd.grad(out, inputs, g)])
    assert all(gap(a, b) < 2e-6 for a, b in zip(*found, strict=True))
    assert int((cuts_N4[:, 2] - cuts_N4[:, 1]).sum()) == int(real.sum())


@eager_flex
@torch.no_grad()
def test_flex_is_sdpa_through_the_whole_model():
    gpt = tiny_gpt()
    samples = [[Part(picture(1)), Part("caption:"), Part("a cat", learn=True)], [Part("a red apple"), Part(picture(2), learn=True)]]
    stream = pack([gpt.write(sample) for sample in samples], gpt.spans, 64)
    real = (stream.document_BT > 0)[..., None]  # padding is read by nobody and may be anything
    assert gap(gpt(stream, backend="flex") * real, gpt(stream, backend="sdpa") * real) < 1e-5


def test_a_picture_that_is_read_is_a_whole_and_all_else_is_causal():
    """A position's vector has a gradient to exactly the positions that it may read."""
    x_BTD, position_BT3, _ = inputs(2, 11)
    x_BTD.requires_grad_()
    h_BTD = decoder()(x_BTD, position_BT3, Reading(DOCUMENT, BLOCK, DOCUMENT, BLOCK))
    for t in range(11):
        (gradient_BTD,) = torch.autograd.grad(h_BTD[:, t].square().sum(), x_BTD, retain_graph=True)
        for b, reached_T in enumerate(gradient_BTD.abs().sum(-1) > 0):
            assert reached_T.tolist() == [bool(DOCUMENT[b, s] == DOCUMENT[b, t] and BLOCK[b, s] <= BLOCK[b, t]) for s in range(11)], (b, t)


@torch.no_grad()
def test_a_picture_is_read_as_a_whole_and_written_in_order():
    """The same for real segments: the last patch reaches the first one's vector, the last code does not."""
    gpt = tiny_gpt()
    other = picture(1).copy()
    other.paste((0, 0, 0), (8, 8, 16, 16))  # the last of four patches
    reads = [gpt(pack([gpt.write([Part(p)])], {}))[0] for p in (picture(1), other)]
    changed = (reads[0] - reads[1]).abs().amax(-1) > 1e-3
    assert changed.tolist() == [False, False, True, True, True, True, True]  # begin and the picture's own begin stand before it
    codes = [gpt.ports["image"].codec.encode(picture(1)) for _ in range(2)]
    codes[1][-1, -1] = (codes[1][-1, -1] + 1) % 16
    writes = [gpt(pack([gpt.write([Part(picture(1), True, c)])], {}))[0] for c in codes]
    assert ((writes[0] - writes[1]).abs().amax(-1) > 1e-3).tolist() == [False] * 9 + [True, True]


# --- cache ----------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("axes", [1, 3])
def test_cached_is_recomputed_at_every_step(axes):
    """Rows add different numbers of ids at a time and leave holes; after every step each row's vectors are those of one whole pass."""
    model, generator = decoder(position_axes=axes), torch.Generator().manual_seed(0)
    x_BTD, position_BT3, _ = inputs(3, 16)
    cache, read = model.new_cache(3, 32), [0, 0, 0]
    for columns in (5, 1, 3, 1, 2, 4):
        counts = torch.randint(0, columns + 1, (3,), generator=generator).tolist()
        counts[generator.initial_seed() % 3] = columns
        counts = [min(n, 16 - r) for n, r in zip(counts, read, strict=True)]
        x, position = torch.full((3, columns, 32), 9.0), torch.full((3, columns, 3), 7)
        document, block = torch.zeros(3, columns, dtype=torch.long), torch.zeros(3, columns, dtype=torch.long)
        for row, n in enumerate(counts):
            new = slice(read[row], read[row] + n)
            x[row, :n], position[row, :n], document[row, :n], block[row, :n] = x_BTD[row, new], position_BT3[row, new], 1, torch.arange(16)[new]
        h = model(x, position, cache.reading(document, block), cache)
        for row, n in enumerate(counts):
            whole = model(x_BTD[row : row + 1, : read[row] + n], position_BT3[row : row + 1, : read[row] + n], causal(1, read[row] + n))
            assert gap(h[row, :n], whole[0, read[row] :]) < 1e-5, (row, columns)
            read[row] += n
    assert cache.used_R.tolist() == read and min(read) > 4


@eager_flex
@torch.no_grad()
def test_cached_flex_is_cached_sdpa():
    model, found = decoder(), {}
    x_BTD, position_BT3, reading = inputs(2, 6)
    for backend in BACKENDS:
        cache = model.new_cache(2, 8)
        steps = [slice(0, 4), slice(4, 6)]
        parts = [
            model(x_BTD[:, at], position_BT3[:, at], cache.reading(reading.document_BT[:, at], reading.block_BT[:, at], backend), cache)
            for at in steps
        ]
        found[backend] = torch.cat(parts, 1)
    assert gap(found["flex"], found["sdpa"]) < 1e-5
    assert gap(found["sdpa"], model(x_BTD, position_BT3, reading)) < 1e-5


def test_a_full_cache_says_so():
    cache, column = Cache(1, 2, 1, 3, 4), torch.ones(2, 2, dtype=torch.long)
    cache.reading(column, column)
    with pytest.raises(InputError, match="4 positions in a cache of 3"):
        cache.reading(column, column)


# --- rotations ------------------------------------------------------------------------------------------------------------------------


def test_golden_rotation():
    """Pair i turns at theta ** (-i / pairs), with three axes by position i mod 3; channel i is paired with channel i + E/2."""
    cos, sin = rotation(torch.full((1, 1, 3), 2), 4, 100.0, 1)
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    angles = torch.tensor([2.0, 0.2])
    wanted = torch.tensor([angles[0].cos(), -angles[1].sin(), angles[0].sin(), angles[1].cos()])
    assert gap(rotate(x, cos, sin).flatten(), wanted) < 1e-6
    cos, _ = rotation(torch.tensor([[[1, 10, 100]]]), 8, 16.0, 3)
    assert gap(cos.flatten(), torch.tensor([1.0, 10 / 2, 100 / 4, 1 / 8]).cos().repeat(2)) < 1e-5


def test_three_equal_positions_are_one():
    """Text reads the same whether a model has one axis or three; a picture does not."""
    x_BTD, _, reading = inputs(1, 6)
    line = torch.arange(6).view(1, 6, 1).expand(1, 6, 3)
    grid = line + torch.tensor([0, 1, 2])
    with torch.no_grad():
        one, three = (
            {p: decoder(position_axes=axes)(x_BTD, position, reading) for p, position in (("line", line), ("grid", grid))} for axes in (1, 3)
        )
    assert gap(one["line"], three["line"]) == 0
    moved = line * torch.tensor([1, 2, 3])
    with torch.no_grad():
        assert gap(three["line"], decoder(position_axes=3)(x_BTD, moved, reading)) > 1e-2


@pytest.mark.parametrize("axes", [1, 3])
def test_only_distances_matter(axes):
    x_BTD, position_BT3, reading = inputs(2, 9)
    with torch.no_grad():
        found = [decoder(position_axes=axes)(x_BTD, position_BT3 + shift, reading) for shift in (0, 100)]
        other = decoder(position_axes=axes)(x_BTD, position_BT3 * 2, reading)
    assert gap(found[0], found[1]) < 2e-4 and gap(found[0], other) > 1e-2


# --- settings -------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_grouped_heads_are_repeated_heads():
    """2 key/value heads for 4 heads = 4 key/value heads that are equal two by two."""
    few, many = decoder(num_kv_heads=2), decoder(num_kv_heads=4)
    weights = few.state_dict()
    for name in [name for name in weights if name.endswith("qkv.weight")]:
        q, k, v = weights[name].unflatten(0, (8, 8)).split([4, 2, 2])
        weights[name] = torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]).flatten(0, 1)
    many.load_state_dict(weights)
    x = inputs(2, 7)
    assert gap(few(*x), many(*x)) < 1e-5


@torch.no_grad()
def test_qk_norm_takes_the_size_out_of_queries_and_keys():
    """With it a longer query changes nothing, without it much; off, there are no weights of it."""
    x = inputs(1, 7)
    for on in (True, False):
        model = decoder(qk_norm="rms" if on else "")
        before = model(*x)
        for block in model.blocks:
            block.attention.qkv.weight[:32] *= 8  # the queries' rows
        assert (gap(before, model(*x)) < 1e-3) == on
        assert any("q_norm" in name for name in model.state_dict()) == on


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="4 heads over 3"):
        DecoderConfig(**SIZES | {"num_kv_heads": 3})


# --- transformers ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_llama_and_qwen3_of_transformers_are_settings_of_it():
    """Random weights of theirs, put into ours: the same vectors."""
    from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

    sizes = {"vocab_size": 11, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"intermediate_size": 48, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    ids, kinds = (
        torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0)),
        {False: (LlamaConfig, LlamaModel), True: (Qwen3Config, Qwen3Model)},
    )
    position = torch.arange(9).view(1, 9, 1).expand(2, 9, 3)
    for normed, (config, kind) in kinds.items():
        theirs = kind(config(**sizes, initializer_range=0.2)).eval()
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
        ours = decoder(rope_theta=500.0, norm_eps=1e-5, qk_norm="rms" if normed else "", position_axes=1)
        ours.load_state_dict(renamed(theirs.state_dict()))
        assert gap(ours(theirs.embed_tokens(ids), position, causal(2, 9)), theirs(ids).last_hidden_state) < 1e-5, kind.__name__


def renamed(theirs: dict) -> dict:
    names = {"o_proj": "attention.out", "q_norm": "attention.q_norm", "k_norm": "attention.k_norm", "down_proj": "mlp.down"}
    names |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    ours = {"norm.weight": theirs["norm.weight"]}
    for layer in range(2):
        old = {name.removeprefix(f"layers.{layer}.").split(".")[-2]: value for name, value in theirs.items() if name.startswith(f"layers.{layer}.")}
        new = {names[name]: value for name, value in old.items() if name in names}
        new |= {"attention.qkv": torch.cat([old[f"{x}_proj"] for x in "qkv"]), "mlp.gate_up": torch.cat([old["gate_proj"], old["up_proj"]])}
        ours |= {f"blocks.{layer}.{name}.weight": value for name, value in new.items()}
    return ours


def test_swiglu_gates_with_the_first_half():
    mlp = decoder().blocks[0].mlp
    x = torch.randn(3, 1, 32)
    gate, up = F.linear(x, mlp.gate_up.weight[:48]), F.linear(x, mlp.gate_up.weight[48:])
    assert gap(mlp(x).detach(), (gate * torch.sigmoid(gate) * up @ mlp.down.weight.T).detach()) < 1e-5


def test_recomputed_blocks_have_the_same_gradients():
    """With dropout, too; what a block holds for its backward pass is computed twice."""
    found = []
    for recompute in (False, True):
        gpt, calls = tiny_gpt(dropout=0.3).train(), []
        for block in gpt.decoder.blocks:
            block.recompute = recompute
            block.mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        gpt.losses(pack([gpt.write([Part("a red apple", True)])], gpt.spans))["text"].sum().backward()
        found.append({name: p.grad for name, p in gpt.named_parameters() if p.grad is not None})
        assert len(calls) == (2 + recompute * 2)
    assert found[0].keys() == found[1].keys() and max(gap(found[0][name], found[1][name]) for name in found[0]) < 1e-6


COMPILED = """
import torch
from torch._dynamo.utils import counters
from tiny import gap, picture, tiny_gpt
from mmgpt.pack import pack
from mmgpt.types import Part

compiled, eager = tiny_gpt().train(), tiny_gpt().train()
compiled.decoder.compile(fullgraph=True)
for n in range(5):
    samples = [[Part(picture(n + k)), Part("caption:" * (k % 3 + 1)), Part("a cat" * (n % 2 + 1), learn=True)] for k in range(2 + n)]
    samples += [[Part("a red"), Part(picture(9), learn=True)]]
    stream, found = pack([eager.write(sample) for sample in samples], eager.spans, 128), []
    for gpt in (compiled, eager):
        gpt.zero_grad()
        losses = torch.cat(list(gpt.losses(stream).values()))
        losses.sum().backward()
        found.append([losses, *(p.grad.clone() for p in gpt.decoder.parameters())])
    assert all(gap(a, b) < 1e-4 * (1 + b.abs().max()) for a, b in zip(*found, strict=True)), n
print(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
"""


@pytest.mark.long
def test_compiled_is_eager_and_new_lengths_are_no_reason_to_compile_again():
    """Forward and backward over packed rows of five mixes of documents: at most two graphs, the second one for any number of rows. In a
    process of its own: the shapes that tests check are not what is compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    graphs, breaks = map(int, done.stdout.split())
    assert graphs <= 2 and breaks == 0
