"""A change in place that changes nothing when it is made again is made once."""

from compiler.forms import after, steps, tensor


def test_a_threshold_is_clamped_once() -> None:
    after("idempotent", lambda xs, threshold: [x - threshold.clamp_(0, 1) for x in xs], steps(), tensor()).expect("""\
clamp_ = clamp_(x, 0, 1)
sub = sub(x_1, clamp_)
clamp__1 = clamp_(clamp_, 0, 1)
sub_1 = sub(x_2, clamp__1)
return [sub, sub_1]""")


def test_what_changes_in_between_is_changed_again() -> None:
    after(
        "idempotent", lambda xs, threshold: [threshold.clamp_(0, 1).add_(x) for x in xs], steps(), tensor()
    ).expect("""\
clamp_ = clamp_(x, 0, 1)
add_ = add_(clamp_, x_1)
clamp__1 = clamp_(add_, 0, 1)
add__1 = add_(clamp__1, x_2)
return []""")
