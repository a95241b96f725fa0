import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation import bootstrap
from genrag_cli.evaluation.bootstrap import BlockSums, bootstrap_difference, bootstrap_sections, spatial_blocks
from genrag_cli.evaluation.metrics import pcc_k, pearson_per_gene


def lattice(rows, columns):
    return np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2).astype(float)


def correlated(n, genes, random, r=0.5):
    """Independent spots; prediction and truth of each gene correlate by r."""
    truth, noise = random.normal(size=(2, n, genes))
    return r * truth + np.sqrt(1 - r**2) * noise, truth


def single(pair):
    return (*pair, np.arange(len(pair[0])))


def test_blocks_are_squares_of_spots():
    labels = spatial_blocks(lattice(6, 8) * 100, pitch=100, side=3).reshape(6, 8)
    assert labels.tolist() == [[0, 0, 0, 2, 2, 2, 4, 4]] * 3 + [[1, 1, 1, 3, 3, 3, 5, 5]] * 3


def test_blocks_follow_a_spot_and_not_its_place_in_the_list():
    centres = lattice(9, 9) + np.random.default_rng(0).uniform(-0.2, 0.2, (81, 2))
    turned = np.random.default_rng(1).permutation(81)
    np.testing.assert_array_equal(spatial_blocks(centres, 1)[turned], spatial_blocks(centres[turned], 1))


def test_one_spot_wide_blocks_are_the_spots():
    assert len(set(spatial_blocks(lattice(5, 7) * 0.3, 0.3, side=1))) == 35


@pytest.mark.parametrize(("centres", "pitch", "side"), [([[0, np.nan]], 1, 4), ([0, 1], 1, 4), ([[0, 1]], 0, 4)])
def test_blocks_that_cannot_be_cut_are_refused(centres, pitch, side):
    with pytest.raises(GeneragError, match=r"needed for blocks|blocks need a pitch"):
        spatial_blocks(centres, pitch, side)


def test_every_block_once_is_the_plain_correlation():
    p, t = np.random.default_rng(0).normal(5, 2, (2, 60, 40))
    p[:, 3] = t[:, 7] = 1.1
    r = BlockSums(p, t, spatial_blocks(lattice(6, 10), 1)).correlations([np.ones(6)])
    np.testing.assert_allclose(r[0], pearson_per_gene(p, t), atol=1e-12)
    assert np.isnan(r[0]).sum() == 2


def test_multiplicities_are_the_correlation_of_repeated_spots():
    random = np.random.default_rng(1)
    p, t = random.poisson(0.15, (2, 60, 80)) * 3.3 + 1e5  # many genes are constant in some replicate
    blocks = random.integers(0, 7, 60)
    times = random.multinomial(7, np.full(7, 1 / 7), size=20)
    r = BlockSums(p, t, blocks).correlations(times)
    undefined = 0
    for row, found in zip(times, r, strict=True):
        spots = np.repeat(np.arange(60), row[blocks])
        expected = pearson_per_gene(p[spots], t[spots])
        np.testing.assert_allclose(found, expected, atol=1e-7)
        undefined += np.isnan(expected).sum()
    assert undefined > np.isnan(pearson_per_gene(p, t)).sum() * 20


def test_estimates_are_the_plain_metric_over_sections_then_patients():
    random = np.random.default_rng(2)
    sections = [single(correlated(40, 20, random, r)) for r in (0.2, 0.4, 0.9)]
    mean = [pcc_k(pearson_per_gene(p, t), 5).value for p, t, _ in sections]
    plain, grouped = (bootstrap_sections(sections, [5], 20, groups=g)["PCC-5"] for g in (None, ["A", "A", "B"]))
    assert plain.estimate == pytest.approx(np.mean(mean))
    assert grouped.estimate == pytest.approx(((mean[0] + mean[1]) / 2 + mean[2]) / 2)


def test_one_replicate_by_hand_weighs_patients_equally(monkeypatch):
    random = np.random.default_rng(3)
    sections = [(*correlated(30, 8, random, r), np.zeros(30)) for r in (0.1, 0.5, 0.9)]
    r = [np.nanmean(pearson_per_gene(p, t)) for p, t, _ in sections]
    # Each section is one block, so a replicate is a mean of plain values: A (two of r0, r1) and B (r2), twice drawn.
    of_a = {(a + b) / 2 for a in r[:2] for b in r[:2]}
    possible = sorted((x + y) / 2 for x in [*of_a, r[2]] for y in [*of_a, r[2]])
    kept = []
    real = np.quantile
    monkeypatch.setattr(bootstrap.np, "quantile", lambda values, q: kept.append(values) or real(values, q))
    bootstrap_sections(sections, [], 50, groups=["A", "A", "B"])
    assert all(np.min(np.abs(np.array(possible) - value)) < 1e-12 for value in kept[0])
    assert len(set(np.round(kept[0], 9))) > 4


def test_equal_seeds_give_equal_intervals():
    sections = [single(correlated(40, 20, np.random.default_rng(0)))]
    first, again, other = (bootstrap_sections(sections, [5], 50, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_intervals_do_not_depend_on_how_many_cells_are_worked_on_at_once(monkeypatch):
    sections = [single(correlated(40, 20, np.random.default_rng(0)))] * 2
    before = bootstrap_sections(sections, [5], 50)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 70)
    after = bootstrap_sections(sections, [5], 50)
    assert [after[k].low for k in after] == pytest.approx([before[k].low for k in before], abs=1e-12)


def test_blocks_of_alike_spots_give_wider_intervals_than_single_spots():
    random = np.random.default_rng(4)
    p, t = (gaussian_filter(random.normal(size=(24, 24, 30)), (2, 2, 0)).reshape(576, 30) for _ in range(2))
    p, t = p[:, :1] + np.zeros_like(p), t[:, :1] + np.zeros_like(t)  # one field, so that genes do not average out
    width = {}
    for side in (1, 6):
        found = bootstrap_sections([(p, t, spatial_blocks(lattice(24, 24), 1, side))], [], 300)["PCC-all"]
        width[side] = found.high - found.low
    assert width[6] > 2 * width[1]


def cover(draw, repeats, names, **options):
    """How often the interval holds the mean of the estimates over many made-up experiments, for each metric."""
    found = [bootstrap_sections(draw(), [5], 200, seed=i, **options) for i in range(repeats)]
    truth = {name: np.mean([f[name].estimate for f in found]) for name in names}
    return {name: np.mean([f[name].low <= truth[name] <= f[name].high for f in found]) for name in names}


def test_intervals_hold_the_truth_at_about_the_nominal_rate():
    random = np.random.default_rng(5)
    rates = cover(lambda: [single(correlated(80, 25, random))], 300, ["PCC-5", "PCC-all"], level=0.9)
    assert 0.82 < rates["PCC-all"] < 0.96
    assert 0.82 < rates["PCC-5"] < 0.98


def test_in_smooth_fields_blocks_hold_the_truth_far_more_often_than_single_spots():
    def draw(side, random):
        truth, noise = gaussian_filter(random.normal(size=(2, 24, 24, 6)), (0, 1.5, 1.5, 0)).reshape(2, 576, 6)
        return [(truth + noise, truth, spatial_blocks(lattice(24, 24), 1, side))]

    rates = {}
    for side in (1, 6):
        random = np.random.default_rng(0)
        rates[side] = cover(lambda side=side, random=random: draw(side, random), 80, ["PCC-all"], level=0.9)["PCC-all"]
    assert rates[1] < 0.6
    assert rates[6] > 0.7


def test_drawing_patients_covers_differences_between_them():
    random = np.random.default_rng(6)

    def draw():
        return [single(correlated(25, 10, random, r)) for r in np.repeat(random.uniform(0.2, 0.8, 12), 2)]

    patients = cover(draw, 150, ["PCC-all"], level=0.9, groups=[f"P{i // 2}" for i in range(24)])
    assert 0.8 < patients["PCC-all"] < 0.98


def test_the_selection_of_genes_lifts_replicates_and_is_taken_out():
    found = bootstrap_sections([single(correlated(60, 400, np.random.default_rng(7), 0.3))], [10], 200)
    best, every = found["PCC-10"], found["PCC-all"]
    assert best.bias > 0.05
    assert abs(every.bias) < 0.01
    assert best.low < best.estimate < best.high


def test_a_method_does_not_differ_from_itself():
    sections = [single(correlated(40, 20, np.random.default_rng(i))) for i in range(3)]
    for found in bootstrap_difference(sections, [p for p, _, _ in sections], [5], 50).values():
        assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_a_difference_on_the_same_resamples_is_sharper_than_two_intervals():
    random = np.random.default_rng(8)
    sections = [single(correlated(60, 20, random, 0.5)) for _ in range(2)]
    worse = [p + random.normal(0, 0.5, p.shape) for p, _, _ in sections]
    apart = bootstrap_difference(sections, worse, [], 200)["PCC-all"]
    alone = bootstrap_sections(sections, [], 200)["PCC-all"]
    other = bootstrap_sections([(q, t, b) for q, (_, t, b) in zip(worse, sections, strict=True)], [], 200)["PCC-all"]
    assert apart.estimate == pytest.approx(alone.estimate - other.estimate)
    assert 0 < apart.low < apart.estimate < apart.high
    assert apart.high - apart.low < (other.high - other.low) * 0.8


def test_k_beyond_the_defined_genes_has_no_interval_and_says_why():
    p, t = correlated(30, 6, np.random.default_rng(0))
    p[:, 0] = 1
    found = bootstrap_sections([single((p, t))], [6, 3, 3], 20)
    assert list(found) == ["PCC-6", "PCC-3", "PCC-all"]
    assert (found["PCC-6"].estimate, found["PCC-6"].low) == (None, None)
    assert "section 1: refused: 6 genes asked for, 5 of 6 are defined" in found["PCC-6"].note
    assert found["PCC-3"].estimate is not None


def test_a_section_of_constants_has_no_interval():
    found = bootstrap_sections([single((np.ones((5, 2)), np.ones((5, 2))))], [], 20)["PCC-all"]
    assert (found.estimate, found.times) == (None, 0)


def test_what_was_resampled_is_said_in_words():
    random = np.random.default_rng(0)
    section = (*correlated(48, 3, random), spatial_blocks(lattice(6, 8), 1, 3))
    whole = (*correlated(48, 3, random), np.zeros(48))

    def words(sections, groups=None):
        return bootstrap_sections(sections, [], 5, groups=groups)["PCC-all"].resampled

    assert words([section]) == "1 section, not resampled; 6 blocks of 9 spots (median)"
    assert words([section] * 3) == "3 sections; 18 blocks of 9 spots (median)"
    assert words([section] * 2, "AA") == "1 patient, not resampled; 2 sections; 12 blocks of 9 spots (median)"
    assert words([section] * 2, "AB").startswith("2 patients; 2 sections, one per patient and not resampled; ")
    assert "3 sections, of which 1 the only one of a patient and not resampled" in words([section] * 3, "ABB")
    assert words([single(correlated(9, 3, random))]).endswith("9 single spots")
    assert words([section, whole]).endswith("spots of 1 section not resampled, one block each")


def test_few_patients_or_sections_are_warned_of():
    section = single(correlated(20, 3, np.random.default_rng(0)))
    notes = {n: bootstrap_sections([section] * n, [], 5)["PCC-all"].note for n in (1, 3, 8)}
    assert notes == {1: "", 3: "3 sections only, so the interval is too narrow", 8: ""}


def test_what_cannot_be_resampled_is_refused():
    p, t = correlated(20, 3, np.random.default_rng(0))
    with pytest.raises(GeneragError, match="bootstrap of 0 sections"):
        bootstrap_sections([], [5])
    with pytest.raises(GeneragError, match="section 1: blocks of shape"):
        bootstrap_sections([(p, t, np.arange(3))], [1])
    with pytest.raises(GeneragError, match="1 patients were given for 2 sections"):
        bootstrap_sections([single((p, t))] * 2, [1], groups=["A"])
    with pytest.raises(GeneragError, match="are no pairs"):
        bootstrap_difference([single((p, t))], [], [1])
    with pytest.raises(GeneragError, match="not finite"):
        bootstrap_sections([single((p * np.nan, t))], [1])
