"""The generator of street scenes: repeatable, the same at every size, and labelled exactly."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image
from street_scenes import WEATHERS, Scene, canvas, generate_scene
from street_scenes.canvas import Item
from street_scenes.cycles import cycle_item
from street_scenes.furniture import sign_item, traffic_light_item
from street_scenes.greenery import tree_item
from street_scenes.people import person_item, random_look
from street_scenes.plan import plan_items, plan_world
from street_scenes.scene import draw
from street_scenes.vehicles import BODIES, Vehicle, vehicle_item

from workbench.core.errors import InputError
from workbench.pictures.cityscapes import train_ids_to_ids

SEEDS = range(16)
LABELS = {*range(16), 17, 18}  # every train class but the train


@cache
def small_scene(seed: int) -> Scene:
    return generate_scene(seed, 128, 256)


def test_same_seed_gives_the_same_pixels():
    first, second = generate_scene(11, 96, 192), generate_scene(11, 96, 192)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.train_ids, second.train_ids)
    assert first.weather == second.weather


def test_different_seeds_give_different_scenes():
    pictures = {small_scene(seed).image.tobytes() for seed in SEEDS}
    labels = {small_scene(seed).train_ids.tobytes() for seed in SEEDS}
    assert len(pictures) == len(labels) == len(SEEDS)


@pytest.mark.parametrize("size", [(64, 64), (64, 2048), (200, 90), (133, 311), (256, 512), (1024, 2048)])
def test_every_size_gives_uint8_picture_and_labels_of_that_size(size):
    scene = generate_scene(3, *size)
    assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
    assert scene.train_ids.shape == size and scene.train_ids.dtype == np.uint8
    assert set(np.unique(scene.train_ids).tolist()) <= LABELS


def test_default_size_is_512_by_1024():
    assert generate_scene(0).image.shape == (512, 1024, 3)


def test_labels_are_only_cityscapes_train_ids():
    for seed in SEEDS:
        assert set(np.unique(small_scene(seed).train_ids).tolist()) <= LABELS


def test_ids_are_the_cityscapes_ids_of_the_same_pixels():
    scene = small_scene(5)
    np.testing.assert_array_equal(scene.ids, train_ids_to_ids(scene.train_ids))
    assert set(np.unique(scene.ids[scene.train_ids == canvas.ROAD]).tolist()) == {7}  # Cityscapes: road has id 7


@pytest.mark.parametrize("seed", [1, 4, 9, 18])
def test_two_sizes_show_the_same_composition(seed):
    small = generate_scene(seed, 192, 384).train_ids
    large = Image.fromarray(generate_scene(seed, 576, 1152).train_ids)
    resized = np.asarray(large.resize((384, 192), Image.Resampling.NEAREST))
    assert np.mean(small == resized) > 0.9  # outlines are rounded to whole pixels, so edges may differ


def test_a_narrow_picture_is_the_middle_of_a_wide_one():
    wide, narrow = generate_scene(6, 128, 256), generate_scene(6, 128, 128)
    # outlines cut by the border of the picture are rounded a little differently there
    assert np.mean(wide.train_ids[:, 64:192] == narrow.train_ids) > 0.999


def test_road_is_at_the_bottom_and_sky_at_the_top():
    bottom = [np.mean(small_scene(seed).train_ids[120:, 112:144] == canvas.ROAD) for seed in SEEDS]
    top = [np.mean(small_scene(seed).train_ids[:16] == canvas.SKY) for seed in SEEDS]
    below = [np.mean(small_scene(seed).train_ids[80:] == canvas.SKY) for seed in SEEDS]
    assert min(bottom) > 0.5 and np.mean(bottom) > 0.9  # a car may stand in the middle of one
    assert np.mean(top) > 0.2 and max(below) == 0


def test_every_wanted_class_occurs_in_a_few_seeds():
    seen = {label for seed in SEEDS for label in np.unique(small_scene(seed).train_ids).tolist()}
    assert seen == LABELS


def test_every_weather_occurs():
    weathers = {plan_world(seed, 64, 64)[1].weather for seed in range(60)}
    assert weathers == set(WEATHERS)


def _objects():
    look = random_look(np.random.default_rng(0), wet=False)
    car = Vehicle(BODIES["sedan"], 1.5, 9.0, 0.3, (160, 30, 30), True)
    steel = (120, 120, 120)
    return {
        "car": (vehicle_item(car), {canvas.CAR}),
        "bus": (vehicle_item(replace(car, body=BODIES["bus"], z=16.0)), {canvas.BUS}),
        "person": (person_item(0.5, 8.0, look), {canvas.PERSON}),
        "tree": (tree_item(0.5, 11.0, 7.0, 2.0, 1.1, (80, 110, 50), 1), {canvas.VEGETATION}),
        "sign": (sign_item(1.0, 9.0, ("limit", "parking"), steel), {canvas.TRAFFIC_SIGN, canvas.POLE}),
        "light": (traffic_light_item(1.0, 9.0, 0, 2.0, steel), {canvas.TRAFFIC_LIGHT, canvas.POLE}),
        "rider": (cycle_item(1.0, 8.0, 1.4, steel, look), {canvas.RIDER, canvas.BICYCLE}),
        "motorcycle": (cycle_item(1.0, 8.0, 0.0, steel, None, True), {canvas.MOTORCYCLE}),
    }


@pytest.mark.parametrize("name", list(_objects()))
def test_every_pixel_that_an_added_object_changes_carries_its_label(name):
    item, labels = _objects()[name]
    camera, light, street = plan_world(2, 128, 256)
    items = plan_items(2, light, street)
    before = draw(2, camera, light, street, items)
    added = replace(item, foot=(), cast=())  # its shadow falls on surfaces that keep their own labels
    after = draw(2, camera, light, street, [*items, added])
    changed = np.any(np.asarray(before.picture) != np.asarray(after.picture), axis=2)
    relabelled = np.asarray(before.labels) != np.asarray(after.labels)
    assert changed.sum() > 30
    assert set(np.asarray(after.labels)[changed].tolist()) <= labels
    assert set(np.asarray(after.labels)[relabelled].tolist()) <= labels


def test_camera_effects_leave_the_labels_alone():
    camera, light, street = plan_world(8, 128, 256)
    items = plan_items(8, light, street)
    painted = draw(8, camera, light, street, items)
    np.testing.assert_array_equal(np.asarray(painted.labels), small_scene(8).train_ids)


def test_a_shadow_darkens_the_road_and_does_not_change_its_label():
    camera, light, street = plan_world(2, 128, 256)
    shadow = Item(10.0, lambda painted: None, foot=((-1.0, 8.0), (1.0, 8.0), (1.0, 12.0), (-1.0, 12.0)))
    without, with_shadow = (draw(2, camera, light, street, items) for items in ([], [shadow]))
    np.testing.assert_array_equal(np.asarray(without.labels), np.asarray(with_shadow.labels))
    column, row = (int(value) for value in camera.project(0.0, 0.0, 10.0))
    assert np.asarray(with_shadow.picture)[row, column, :3].sum() < np.asarray(without.picture)[row, column, :3].sum()


def test_things_far_away_are_smaller_in_proportion():
    camera = plan_world(0, 512, 1024)[0]

    def height(z: float) -> float:
        return camera.project(0.0, 0.0, z)[1] - camera.project(0.0, 1.8, z)[1]

    assert height(10.0) == pytest.approx(2 * height(20.0))  # a pinhole: size goes with 1 / distance


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((0, 63, 128), ("63", "64 to 1024", "generate at a size in that range")),
        ((0, 512, 4096), ("4096", "64 to 2048", "generate at a size in that range")),
        ((0, 512.0, 1024), ("512.0", "64 to 1024", "generate at a size in that range")),
        ((0, "512", 1024), ("'512'", "64 to 1024", "generate at a size in that range")),
        ((-1, 512, 1024), ("-1", "integer from 0", "generate_scene(7)")),
        ((1.5, 512, 1024), ("1.5", "integer from 0", "generate_scene(7)")),
    ],
)
def test_bad_arguments_say_what_was_got_what_is_expected_and_what_to_do(arguments, parts):
    with pytest.raises(InputError) as caught:
        generate_scene(*arguments)
    for part in parts:
        assert part in str(caught.value)
