"""Every file in examples/ as a user submits it, with its epochs cut: all succeed, and those that need files say which."""

from doors import EXAMPLES, House, example

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.json"))


def test_all_that_need_no_download_succeed(house: House) -> None:
    jobs = {name: house.submit(short(name))["id"] for name in NAMES if "mnist" not in name}
    states = {name: house.until(job)["state"] for name, job in jobs.items()}
    assert set(states.values()) == {"succeeded"}, states


def test_the_others_say_where_their_files_belong(house: House) -> None:
    job = house.trained(short("004_mnist_l1"), state="failed")
    assert job["reason"] == "data"
    assert str(house.data / "mnist") in job["error"]["detail"]


def short(name: str) -> dict[str, object]:
    spec = example(name)
    return {**spec, "budget": {**spec["budget"], "epochs": 1}}
