"""What a LoRA file's header says of its training, in any state that people leave it in."""

import json

from bench.auditing.header import read_training_header, together

WHOLE = {
    "ss_sd_model_name": "v1-5.safetensors",
    "ss_num_train_images": "510",
    "ss_epoch": "7",
    "ss_num_epochs": "50",
    "ss_flip_aug": "True",
    "ss_random_crop": "False",
    "ss_keep_tokens": "2",
    "ss_dataset_dirs": json.dumps({"64_zwx": {"n_repeats": 64, "img_count": 6}}),
    "ss_tag_frequency": json.dumps({"64_zwx": {"red ": 3, "blue": 1}, "other": {"red": 2}}),
}


def test_everything_that_is_there_is_read():
    found = read_training_header(WHOLE)
    assert (found.base, found.pictures, found.epoch, found.epochs) == (
        "v1-5.safetensors",
        510,
        7,
        50,
    )
    assert (found.flips, found.random_crops, found.keep_tokens) == (True, False, 2)
    assert found.folders == {"64_zwx": (6, 64)}
    assert found.tags == {"red": 5, "blue": 1}
    assert found.told


def test_what_cannot_be_read_counts_as_not_said():
    assert not read_training_header({}).told
    odd = dict.fromkeys(WHOLE, "[") | {"ss_epoch": "-1", "ss_flip_aug": "perhaps"}
    found = read_training_header(odd)
    assert (found.epoch, found.pictures, found.flips, found.folders, found.tags) == (
        None,
        None,
        None,
        {},
        {},
    )
    lists = {"ss_dataset_dirs": "[1]", "ss_tag_frequency": '{"a": 3, "b": {"x": "many"}}'}
    assert read_training_header(lists).tags == {}
    endless = json.dumps({"a": {"x": 10**4000, "y": -1, "z": 2}})
    assert read_training_header({"ss_tag_frequency": endless}).tags == {"z": 2}
    deep = {"ss_tag_frequency": "[" * 100_000}
    assert read_training_header(deep).tags == {}


def test_a_training_that_was_set_up_by_a_file_is_read_too():
    datasets = [
        {
            "subsets": [
                {
                    "image_dir": "my photos",
                    "num_repeats": 10,
                    "img_count": 4,
                    "flip_aug": True,
                    "random_crop": False,
                }
            ],
            "tag_frequency": {"my photos": {"red": 2}},
        },
        "odd",
        {"subsets": "odd"},
    ]
    found = read_training_header({"ss_datasets": json.dumps(datasets), "ss_output_name": "me"})
    assert found.folders == {"my photos": (4, 10)}
    assert found.tags == {"red": 2}
    assert (found.flips, found.random_crops) == (True, False)
    assert found.others == ("ss_output_name",)
    both = together([found, read_training_header(WHOLE)])
    assert set(both.folders) == {"my photos", "64_zwx"}
    assert both.tags == {"red": 7, "blue": 1}
    assert not together([]).read


def test_texts_of_the_header_cannot_hide_anything():
    found = read_training_header({"ss_sd_model_name": "a\u202eb\n<script>" + "x" * 500})
    assert "\u202e" not in found.base
    assert "\n" not in found.base
    assert len(found.base) <= 200
