"""Random values of the call syntax."""

from hypothesis import strategies as st

from opnorm.spec import Call

text = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False) | text,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.builds(
            Call,
            st.sampled_from(["f", "inf", "nan", "a.b", "ünï.x"]),
            st.lists(inner, max_size=2).map(tuple),
            st.lists(st.tuples(st.sampled_from("kxé"), inner), max_size=3, unique_by=lambda p: p[0]).map(
                tuple
            ),
        )
    ),
    max_leaves=8,
)
