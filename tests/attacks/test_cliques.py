"""The clique solver against enumeration with networkx, brute force, and graphs whose largest clique
is known by how they are made.
"""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks._cliques import _pruned, _searched, component_sizes, has_clique, k_core, maximum_clique
from bench.base.errors import UserError


def random_graph(nodes: int, density: float, seed: int = 0) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((nodes, nodes)) < density, 1)
    return upper | upper.T


def points_in_plane(nodes: int, radius: float, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).random((nodes, 2))
    return (np.square(points[:, None] - points[None]).sum(-1) <= radius**2) & ~np.eye(
        nodes, dtype=bool
    )


def without_matching(nodes: int) -> np.ndarray:
    """All edges but those of pairs (0, 1), (2, 3) and so on:

    2 ** (nodes / 2) largest cliques of half the nodes.
    """
    numbers = np.arange(nodes)
    return numbers[:, None] // 2 != numbers[None] // 2


def joined_pentagons(count: int) -> np.ndarray:
    """Rings of five, each node also a neighbour of all nodes of other rings: cliques of 2 and
    colours of 3 a ring.
    """
    numbers = np.arange(5 * count)
    return (numbers[:, None] // 5 != numbers[None] // 5) | np.isin(
        (numbers[:, None] - numbers[None]) % 5, [1, 4]
    )


def with_clique(graph: np.ndarray, members: np.ndarray) -> np.ndarray:
    planted = graph.copy()
    planted[np.ix_(members, members)] = True
    return planted & ~np.eye(len(graph), dtype=bool)


def largest(graph: np.ndarray) -> int:
    return max((len(clique) for clique in nx.find_cliques(nx.from_numpy_array(graph))), default=0)


def is_clique(graph: np.ndarray, members: tuple[int, ...]) -> bool:
    return list(members) == sorted(set(members)) and all(
        graph[a, b] for a, b in combinations(members, 2)
    )


@st.composite
def graphs(draw: st.DrawFn, most: int = 25) -> np.ndarray:
    """Of many kinds and densities, some with structure that a greedy choice gets wrong."""
    nodes, seed = draw(st.integers(0, most)), draw(st.integers(0, 2**32 - 1))
    density = draw(st.floats(0, 1))
    kind = draw(st.sampled_from(["random", "plane", "planted", "pentagons", "matching"]))
    if kind == "plane":
        return points_in_plane(nodes, density, seed)
    if kind == "planted":
        return with_clique(
            random_graph(nodes, density, seed),
            np.random.default_rng(seed).permutation(nodes)[: nodes // 3],
        )
    if kind in ("pentagons", "matching"):
        dense = joined_pentagons(nodes // 5) if kind == "pentagons" else without_matching(nodes)
        return shuffled(
            dense & ~random_graph(len(dense), density / 3, seed),
            np.random.default_rng(seed).permutation(len(dense)),
        )
    return random_graph(nodes, density, seed)


def shuffled(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    return values[np.ix_(order, order)]


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_sizes_and_decisions_equal_enumeration(graph):
    expected = largest(graph)
    clique = maximum_clique(graph)
    assert (len(clique.members), clique.upper_bound, clique.status) == (expected, expected, "exact")
    assert is_clique(graph, clique.members)
    for size in range(1, len(graph) + 2):
        decision = has_clique(graph, size)
        assert decision.answer is (size <= expected)
        assert is_clique(graph, decision.members) and (
            len(decision.members) >= size if decision.answer else decision.members == ()
        )


@settings(max_examples=100, deadline=None)
@given(graphs(), st.integers(0, 8))
def test_search_alone_equals_enumeration(graph, floor):
    """Without the greedy clique and the pruning, which leave little of a small graph."""
    expected = largest(graph)
    members, upper, _ = _searched(graph, floor, len(graph), 10**6)
    assert upper == max(expected, floor) and len(members) == (expected if expected > floor else 0)
    assert is_clique(graph, tuple(sorted(members)))


@settings(max_examples=80, deadline=None)
@given(graphs(), st.integers(1, 30))
def test_small_budget_withholds_but_never_errs(graph, budget):
    expected = largest(graph)
    clique = maximum_clique(graph, budget)
    assert is_clique(graph, clique.members) and clique.nodes <= budget
    assert len(clique.members) <= expected <= clique.upper_bound
    assert clique.status == ("exact" if clique.upper_bound == len(clique.members) else "unknown")
    assert clique.status == "exact" or clique.nodes == budget
    for size in (max(1, expected - 1), expected + 1, max(1, expected)):
        decision = has_clique(graph, size, budget)
        assert decision.nodes <= budget and is_clique(graph, decision.members)
        assert decision.answer in ({True, None} if size <= expected else {False, None})
        assert decision.answer is not None or decision.nodes == budget


@settings(max_examples=100, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_labels_and_diagonal_do_not_matter(graph, random):
    order = np.array(random.sample(range(len(graph)), len(graph)), dtype=np.int64)
    other = shuffled(graph, order) | np.diag([random.random() < 0.5 for _ in order]).astype(
        bool
    ).reshape(graph.shape)
    before = other.copy()
    clique, moved = maximum_clique(graph), maximum_clique(other)
    assert len(clique.members) == len(moved.members) and is_clique(
        graph, tuple(sorted(order[list(moved.members)]))
    )
    size = random.randint(1, len(graph) + 1)
    assert has_clique(graph, size).answer == has_clique(other, size).answer
    assert (
        component_sizes(graph) == component_sizes(other)
        and k_core(other, size).tolist() == k_core(graph, size)[order].tolist()
    )
    assert (other == before).all()
    assert maximum_clique(other) == moved


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_more_edges_never_undo_a_clique(graph, seed, size):
    more = graph | random_graph(len(graph), 0.2, seed)
    assert not has_clique(graph, size).answer or has_clique(more, size).answer
    assert len(maximum_clique(more).members) >= len(maximum_clique(graph).members)


def lightest(graph: np.ndarray, weights: np.ndarray) -> tuple[int, ...]:
    cliques = [tuple(sorted(clique)) for clique in nx.find_cliques(nx.from_numpy_array(graph))]
    size = max(map(len, cliques), default=0)
    return min(
        (clique for clique in cliques if len(clique) == size),
        key=lambda clique: (weight_of(clique, weights), clique),
        default=(),
    )


def weight_of(members: tuple[int, ...], weights: np.ndarray) -> int:
    return sum(int(weights[a, b]) for a, b in combinations(members, 2))


def weights_for(graph: np.ndarray, highest: int, seed: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).integers(0, highest, graph.shape, endpoint=True), 1)
    return upper + upper.T


@settings(max_examples=150, deadline=None)
@given(graphs(most=15), st.sampled_from([0, 1, 3, 10**10]), st.integers(0, 2**32 - 1))
def test_canonical_equals_enumeration(graph, highest, seed):
    weights = weights_for(graph, highest, seed)
    clique = maximum_clique(graph, weights=weights, tie="canonical")
    assert clique.members == lightest(graph, weights)
    assert clique.canonical and clique.status == "exact"
    assert not maximum_clique(graph, weights=weights).canonical


@pytest.mark.parametrize("rings", [2, 3])
@pytest.mark.parametrize("highest", [3, 10**6])
def test_canonical_where_colours_are_more_than_members(rings, highest):
    graph = joined_pentagons(rings)
    for seed in range(20):
        weights = weights_for(graph, highest, seed)
        clique = maximum_clique(graph, weights=weights, tie="canonical")
        assert clique.canonical and clique.members == lightest(graph, weights)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 6), st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([1, 10**6])
)
def test_canonical_of_many_ties_under_any_budget(pairs, seed, budget, highest):
    graph = without_matching(2 * pairs)
    weights, order = (
        weights_for(graph, highest, seed),
        np.random.default_rng(seed).permutation(2 * pairs),
    )
    expected = lightest(graph, weights)
    clique = maximum_clique(graph, budget, weights, tie="canonical")
    assert (
        len(clique.members) == pairs and is_clique(graph, clique.members) and clique.nodes <= budget
    )
    assert not clique.canonical or clique.members == expected
    assert weight_of(clique.members, weights) <= weight_of(maximum_clique(graph).members, weights)
    if highest == 1:
        return  # most cliques tie, and which is first depends on the labels
    whole = maximum_clique(
        shuffled(graph, order), weights=shuffled(weights, order), tie="canonical"
    )
    assert tuple(sorted(order[list(whole.members)])) == expected


def test_canonical_of_equal_weights_needs_no_enumeration():
    graph = without_matching(100)
    clique = maximum_clique(graph, weights=np.ones((100, 100), dtype=np.int64), tie="canonical")
    assert clique.members == tuple(range(0, 100, 2)) and clique.canonical and clique.nodes <= 100


def test_canonical_runs_out_and_says_so_with_what_exchanges_cannot_better():
    graph = without_matching(60)
    weights = weights_for(graph, 10**9, 0)
    clique = maximum_clique(graph, 1, weights, tie="canonical")
    assert (clique.status, clique.canonical, clique.nodes) == ("exact", False, 1)
    assert is_clique(graph, clique.members) and len(clique.members) == 30
    for member in clique.members:
        exchanged = tuple(node ^ 1 if node == member else node for node in clique.members)
        assert weight_of(exchanged, weights) >= weight_of(clique.members, weights)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(2, 12))
def test_pruning_keeps_the_truss(graph, size):
    check_truss(graph, size)


def test_pruning_goes_on_to_a_fixed_point():
    for seed in range(8):
        for size in (4, 5, 6):
            # few edges remain, or all go one after the other
            check_truss(random_graph(60, size / 18, seed), size)


def check_truss(graph: np.ndarray, size: int) -> None:
    pruned, kept = _pruned(graph, np.arange(len(graph)), size)
    expected = nx.k_truss(nx.from_numpy_array(graph), size)
    assert kept.tolist() == sorted(expected)
    assert {(int(kept[a]), int(kept[b])) for a, b in np.argwhere(np.triu(pruned))} == {
        tuple(sorted(edge)) for edge in expected.edges
    }


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 25))
def test_cores_and_components(graph, k):
    reference = nx.from_numpy_array(graph)
    assert np.flatnonzero(k_core(graph, k)).tolist() == sorted(nx.k_core(reference, k))
    assert component_sizes(graph) == sorted(
        map(len, nx.connected_components(reference)), reverse=True
    )


def test_chain_is_one_component_and_no_clique():
    chain = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool)
    assert component_sizes(chain) == [3]
    assert len(maximum_clique(chain).members) == 2
    assert has_clique(chain, 2).answer is True and has_clique(chain, 3).answer is False


def unsearched(function, *arguments):
    """The answer, which follows from reductions and bounds alone, so at once on every machine."""
    result = function(*arguments)
    assert result.nodes == 0
    return result


def test_near_complete_graph_of_500_nodes():
    graph = without_matching(500)
    clique = unsearched(maximum_clique, graph)
    assert (len(clique.members), clique.upper_bound) == (250, 250) and is_clique(
        graph, clique.members
    )
    assert unsearched(has_clique, graph, 250).answer is True
    assert unsearched(has_clique, graph, 251).answer is False


def test_complete_and_empty_graphs_of_500_nodes():
    complete, empty = np.ones((500, 500), dtype=bool), np.zeros((500, 500), dtype=bool)
    assert unsearched(maximum_clique, complete).members == tuple(range(500))
    assert (
        unsearched(has_clique, complete, 500).answer is True
        and unsearched(has_clique, complete, 501).answer is False
    )
    zero = np.zeros((500, 500), dtype=np.int64)
    # as deep as cliques get
    assert maximum_clique(complete, weights=zero, tie="canonical").canonical
    clique = unsearched(maximum_clique, empty)
    assert (len(clique.members), clique.upper_bound) == (1, 1)
    assert (
        unsearched(has_clique, empty, 1).answer is True
        and unsearched(has_clique, empty, 2).answer is False
    )
    assert component_sizes(empty) == [1] * 500
    assert (
        maximum_clique(np.zeros((0, 0), dtype=bool)).members == ()
        and has_clique(np.zeros((0, 0), dtype=bool), 1).answer is False
    )


@pytest.mark.parametrize("seed", range(3))
def test_planted_clique_of_ten_is_found_and_nine_is_not_enough(seed):
    graph, members = (
        random_graph(500, 0.03, seed),
        np.random.default_rng(seed).permutation(500)[:10],
    )
    ten, nine = with_clique(graph, members), with_clique(graph, members[:9])
    assert (
        has_clique(ten, 10).members
        == tuple(sorted(members.tolist()))
        == maximum_clique(ten).members
    )
    assert has_clique(nine, 10).answer is False and has_clique(nine, 9).answer is True
    assert len(maximum_clique(nine).members) == 9


@pytest.mark.parametrize(("nodes", "radius"), [(200, 0.1), (300, 0.15), (500, 0.1)])
def test_points_in_the_plane_equal_enumeration(nodes, radius):
    graph = points_in_plane(nodes, radius)
    assert maximum_clique(graph).upper_bound == largest(graph) == len(maximum_clique(graph).members)


@pytest.mark.parametrize("radius", [0.2, 0.35, 0.5])
def test_denser_points_in_the_plane_are_exact(radius):
    graph = points_in_plane(500, radius, seed=1)
    clique = maximum_clique(graph)
    assert clique.status == "exact" and is_clique(graph, clique.members)
    assert (
        has_clique(graph, len(clique.members)).answer is True
        and has_clique(graph, len(clique.members) + 1).answer is False
    )


def test_search_larger_than_recursion_and_colours_that_mislead():
    small = maximum_clique(joined_pentagons(5))
    assert (len(small.members), small.status) == (10, "exact") and small.nodes > 0
    large = maximum_clique(joined_pentagons(100), budget=200)
    # 2 and 3 a ring
    assert len(large.members) == 200 and large.upper_bound == 300 and large.status == "unknown"
    assert has_clique(joined_pentagons(100), 200).answer is True
    assert has_clique(joined_pentagons(100), 201, budget=200) == has_clique(
        joined_pentagons(100), 201, budget=200
    )
    assert has_clique(joined_pentagons(100), 201, budget=200).answer is None
    assert has_clique(joined_pentagons(100), 301, budget=1).answer is False


def test_hard_graph_is_exact_or_honestly_unknown():
    members = np.random.default_rng(0).permutation(300)[:60]
    graph = random_graph(300, 0.9)
    for budget in (1, 2000):
        clique = maximum_clique(graph, budget)
        assert (clique.status, clique.nodes) == ("unknown", budget) and is_clique(
            graph, clique.members
        )
        assert clique.upper_bound > len(clique.members)
        decision = has_clique(graph, len(clique.members) + 5, budget)
        assert decision.answer is None and decision.members == ()
    assert maximum_clique(with_clique(graph, members), 2000).upper_bound >= 60
    assert has_clique(with_clique(graph, members), 60, 2000).answer is not False


def test_bound_cuts_the_search():
    # The bound by the number of candidates alone takes more than 100 times as many.
    clique = maximum_clique(random_graph(100, 0.8))
    assert clique.status == "exact" and clique.nodes < 5000


@pytest.mark.parametrize(
    "values",
    [
        np.ones((2, 3), bool),
        np.array([[0, 1], [0, 0]], bool),
        np.zeros((2, 2)),
        np.zeros(4, bool),
        np.zeros((2, 2, 2), bool),
    ],
)
def test_other_arrays_are_errors(values):
    for function in (
        maximum_clique,
        component_sizes,
        lambda graph: has_clique(graph, 2),
        lambda graph: k_core(graph, 1),
    ):
        with pytest.raises(ValueError, match="symmetric bool"):
            function(values)


def test_bad_arguments():
    graph = random_graph(5, 0.5)
    for size in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            has_clique(graph, size)
    for call in (lambda: has_clique(graph, 2, budget=0), lambda: maximum_clique(graph, budget=-3)):
        with pytest.raises(UserError, match=r"budget .* at least 1"):
            call()
    for weights in (None, np.zeros((4, 4), int), np.zeros((5, 5)), np.triu(np.ones((5, 5), int))):
        with pytest.raises(ValueError, match="symmetric integer weights"):
            maximum_clique(graph, weights=weights, tie="canonical")
