import json

import numpy as np
import pytest
import torch

from ddpm_lightning.evaluation.features import Extracted, Pixels
from ddpm_lightning.evaluation.store import FeatureStore, extract, fill

KEY = {"set": "x", "sha256": "ab"}


def rows(*numbers):
    features = torch.tensor(numbers, dtype=torch.float32)[:, None]
    return Extracted(features, 10 * features, features[:, 0].long())


def test_rows_come_back_by_index_in_the_order_asked_for(tmp_path):
    store = FeatureStore(tmp_path, KEY)
    store.add([5, 3], rows(50, 30), seconds=4.0)
    store.add([4], rows(40), seconds=1.0)
    for found in (store, FeatureStore(tmp_path, KEY)):
        assert found.missing([3, 4, 5, 6]) == [6]
        read = found.read([3, 4, 5])
        assert read.features[:, 0].tolist() == read.predicted.tolist() == [30, 40, 50]
        assert read.logits[:, 0].tolist() == [300, 400, 500]
        assert found.seconds([3, 4]) == 2 + 1
    with pytest.raises(KeyError):
        store.read([6])


def test_parts_that_begin_alike_do_not_take_each_others_place(tmp_path):
    """As of two commands at once, that share the seeds out differently."""
    one, other = FeatureStore(tmp_path, KEY), FeatureStore(tmp_path, KEY)
    one.add([0, 2, 4], rows(0, 2, 4))
    other.add([0, 1, 2], rows(0, 1, 2))
    for store in (one, FeatureStore(tmp_path, KEY)):
        store.refresh()
        assert store.read([0, 1, 2, 4]).features[:, 0].tolist() == [0, 1, 2, 4]
        assert store.read([4, 1]).predicted.tolist() == [4, 1]


def test_rows_of_another_process_are_seen_after_a_look(tmp_path):
    ours, theirs = FeatureStore(tmp_path, KEY), FeatureStore(tmp_path, KEY)
    theirs.add([1], rows(1))
    assert ours.missing([1]) == [1]
    ours.refresh()
    assert ours.missing([1]) == []


def test_what_shapes_a_row_decides_where_it_is(tmp_path):
    FeatureStore(tmp_path, KEY).add([1], rows(1))
    assert FeatureStore(tmp_path, {**KEY, "sha256": "cd"}).missing([1]) == [1]


def test_files_of_another_version_are_left_out_with_a_warning(tmp_path):
    store = FeatureStore(tmp_path, KEY)
    store.add([1], rows(1))
    record = store.folder / "key.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": 0}))
    with pytest.warns(UserWarning, match="is of version 0, not 1: computed anew"):
        again = FeatureStore(tmp_path, KEY)
    assert again.missing([1]) == [1]
    again.add([1], rows(7))
    assert FeatureStore(tmp_path, KEY).read([1]).features.item() == 7


def test_a_broken_file_is_named_and_its_rows_are_missing(tmp_path):
    store = FeatureStore(tmp_path, KEY)
    store.add([1], rows(1))
    store.add([2], rows(2))
    [broken] = store.folder.glob("part-000000000002-*.npz")
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.warns(UserWarning, match=r"part-000000000002-\w+.npz is broken: computed anew"):
        again = FeatureStore(tmp_path, KEY)
    assert again.missing([1, 2]) == [2]


def test_features_without_classes_are_kept_without_them(tmp_path):
    store = FeatureStore(tmp_path, KEY)
    store.add([0, 1], Extracted(torch.ones(2, 3)))
    assert store.read([1]).logits is None
    assert store.read([1]).predicted is None


def test_images_are_asked_for_by_index_and_batches_are_filled_up(tmp_path):
    images = torch.randint(0, 256, (40, 1, 2, 2), dtype=torch.uint8)
    asked, seen, done = [], [], []

    class Watching(Pixels):
        def __call__(self, batch):
            seen.append(len(batch))
            return super().__call__(batch)

    def serve(indices):
        asked.append(list(indices))
        return images[list(indices)]

    store = FeatureStore(tmp_path, KEY)
    fill(store, Watching(), [*range(10, 30), 3], serve, batch_size=18, block=16, on_batch=done.append)
    assert asked == [list(range(10, 28)), [28, 29, 3]]
    assert seen == [32, 16]
    assert done == [18, 3]
    read = store.read([3, 29, 10]).features
    np.testing.assert_array_equal(read, images[[3, 29, 10]].flatten(1).float() / 127.5 - 1)
    assert extract(Pixels(), images[:5], 16).features.shape == (5, 4)
