"""The interpreter as the runtime's device: memory, copies, graphs and products."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.runtime.cuda.device import DeviceMemoryError, Operand, Product
from tests.cuda.device import Interpreter
from tests.cuda.ptx import PTXError
from tests.cuda.running import HEAD, handwritten, launch

ADD_ONE = """
mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; ld.param.u64 %d1, [p0]; add.s64 %d1, %d1, %d2;
ld.global.f32 %f1, [%d1]; add.f32 %f1, %f1, 0f3F800000; st.global.f32 [%d1], %f1; ret;
"""


def put(device: Interpreter, array: np.ndarray) -> int:
    address = device.allocate(array.nbytes)
    device.write(address, array)
    return address


def got(device: Interpreter, address: int, like: np.ndarray) -> np.ndarray:
    into = np.empty_like(like)
    device.read(address, into)
    return into


def test_what_is_written_is_read_and_copied():
    device, x = Interpreter(1 << 24), np.arange(100.0).reshape(4, 25)
    a, b = put(device, x), device.allocate(x.nbytes)
    device.copy(b, a, x.nbytes)
    np.testing.assert_array_equal(got(device, b, x), x)
    assert a % 256 == b % 256 == 0


def test_memory_that_nobody_wrote_is_not_a_number():
    device = Interpreter(1 << 24)
    assert np.isnan(got(device, device.allocate(40), np.zeros(10, np.float32))).all()


def test_copies_stay_inside_one_allocation():
    device, x = Interpreter(1 << 24), np.zeros(64)
    with pytest.raises(PTXError, match="a copy of 512 bytes"):
        device.write(device.allocate(256), x)


def test_too_little_memory_says_how_much_there_is():
    with pytest.raises(DeviceMemoryError, match="1,000,000,000 bytes are asked for"):
        Interpreter(1 << 20).allocate(10**9)


def test_a_capture_does_nothing_until_it_is_replayed_and_then_all_of_it():
    device, x = Interpreter(1 << 24), np.zeros(32, np.float32)
    kernel = device.load(b"", handwritten(ADD_ONE, 1).encode(), "kernel")
    a, b = put(device, x), put(device, x)

    def work() -> None:
        device.launch(kernel, 1, 32, [a])
        device.copy(b, a, x.nbytes)

    replay = device.capture(work)
    assert not got(device, a, x).any()
    for _ in range(3):
        replay()
    assert (got(device, a, x) == 3).all() and (got(device, b, x) == 3).all()
    assert device.launched == [("kernel", 1, 32)] * 3


def test_a_capture_refuses_to_wait():
    device = Interpreter(1 << 24)
    with pytest.raises(PTXError, match="wait during capture"):
        device.capture(device.wait)


@pytest.mark.parametrize("element", ["float32", "float64"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_product_takes_either_order_and_a_batch(element, accumulate):
    rng = np.random.default_rng(0)
    left, right, target = (rng.normal(size=s).astype(element) for s in ((3, 4, 5), (3, 6, 5), (3, 4, 6)))
    device = Interpreter(1 << 24)
    a, b, c = (put(device, x) for x in (left, right, target))
    operands = Operand(a, 5, 1, 20), Operand(b, 1, 5, 30), Operand(c, 6, 1, 24)
    added = operands[2] if accumulate else None
    product = Product(4, 6, 5, 3, *operands, 0.5, "float32", element, added, 1.0)
    assert device.multiply(product)
    want = 0.5 * left.astype(float) @ right.transpose(0, 2, 1) + (target if accumulate else 0)
    np.testing.assert_allclose(got(device, c, target), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("precision", "digits"), [("float32", 24), ("tf32", 11), ("bf16", 8)])
def test_a_product_keeps_as_many_digits_as_its_precision_says(precision, digits):
    device = Interpreter(1 << 24)
    one_and = np.array([1 + 2.0 ** (1 - digits), 1 + 2.0**-digits], np.float32)
    a, b, c = put(device, one_and), put(device, np.ones(1, np.float32)), put(device, one_and)
    operands = Operand(a, 1, 1, 0), Operand(b, 1, 1, 0), Operand(c, 1, 1, 0)
    device.multiply(Product(2, 1, 1, 1, *operands, 1.0, precision, "float32"))
    found = got(device, c, one_and)
    assert found[0] == one_and[0] and (found[1] != 1 + 2.0**-digits or digits == 24)


def test_a_product_stays_inside_its_buffers():
    device = Interpreter(1 << 24)
    a = put(device, np.zeros(15, np.float32))
    with pytest.raises(PTXError, match="a copy of 64 bytes"):
        device.multiply(Product(4, 4, 4, 1, *(Operand(a, 4, 1, 0),) * 3, 1.0, "float32", "float32"))


def test_a_modules_tables_are_there():
    module = ".const .align 4 .b8 table[8] = {1, 0, 0, 0, 2, 0, 0, 0};"
    module += ".global .align 8 .f64 half[1] = {0d3FE0000000000000};"
    body = "mov.u64 %d1, table; ld.const.u32 %r1, [%d1+4]; mov.u64 %d2, half; ld.global.f64 %g1, [%d2];"
    body += "cvt.rn.f64.u32 %g2, %r1; add.f64 %g1, %g1, %g2; ld.param.u64 %d3, [p0]; st.global.f64 [%d3], %g1; ret;"
    assert launch(handwritten(body, 1, module=module), 1, 1, np.zeros(1))[0] == 2.5


CALL = (
    HEAD
    + """
.func (.param .b64 back) cube(.param .b64 x, .param .align 8 .b8 pair[16])
{
    .reg .f64 %a<4>; .reg .pred %p<2>; .local .align 8 .b8 kept[8]; .reg .b64 %l<2>;
    mov.u64 %l1, kept; ld.param.f64 %a1, [x]; st.local.f64 [%l1], %a1; ld.param.f64 %a2, [pair+8];
    setp.lt.f64 %p1, %a1, 0d0000000000000000; @%p1 bra Negative;
    mul.f64 %a2, %a2, %a1; mul.f64 %a2, %a2, %a1;
    Negative: ld.local.f64 %a3, [%l1]; mul.f64 %a2, %a2, %a3; st.param.f64 [back], %a2; ret;
}
.visible .entry kernel(.param .u64 p0)
{
    .reg .b64 %d<4>; .reg .b32 %r<2>; .reg .f64 %a<4>;
    ld.param.u64 %d1, [p0]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 8; add.s64 %d1, %d1, %d2;
    ld.global.f64 %a1, [%d1]; mov.f64 %a2, 0d3FF0000000000000;
    { .param .b64 param0; .param .align 8 .b8 param1[16]; .param .b64 retval0;
      st.param.f64 [param0], %a1; st.param.v2.f64 [param1], {%a1, %a2};
      call.uni (retval0), cube, (param0, param1); ld.param.f64 %a1, [retval0]; }
    { .param .b64 param0; .param .align 8 .b8 param1[16]; .param .b64 retval0;
      st.param.f64 [param0], %a1; st.param.v2.f64 [param1], {%a1, %a2};
      call.uni (retval0), cube, (param0, param1); ld.param.f64 %a1, [retval0]; }
    st.global.f64 [%d1], %a1; ret;
}
"""
)


def test_a_function_is_called_twice_with_lanes_that_part():
    x = np.array([1.0, 1.5, -2.0, 0.5])
    np.testing.assert_array_equal(launch(CALL, 1, 4, x)[0], [1.0, 1.5**9, -2.0, 0.5**9])


def test_a_jump_table_sends_each_lane_to_its_case():
    body = "mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 3; ts: .branchtargets A, B, A, C; brx.idx %r2, ts;"
    body += "A: mov.f32 %f1, 0f3F800000; bra E; B: mov.f32 %f1, 0f40000000; bra E; C: mov.f32 %f1, 0f40400000;"
    body += "E: ld.param.u64 %d1, [p0]; mul.wide.u32 %d2, %r1, 4; add.s64 %d1, %d1, %d2; st.global.f32 [%d1], %f1; ret;"
    found = launch(handwritten(body, 1), 1, 8, np.zeros(8, np.float32))[0]
    np.testing.assert_array_equal(found, [1, 2, 1, 3] * 2)
