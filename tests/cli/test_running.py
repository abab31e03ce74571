def test_the_answer_goes_to_standard_output(run, made, tmp_path):
    path = made("gptq").directory
    done = run("generate", path, "hello", "--tokens", 5, "--threads", 1, "--dtype", "float32", "--quiet")
    assert done.status == 0 and done.out.strip() and "tokens" in done.err
    done = run("bench", path, "--prompt", 4, "--tokens", 2, "--rounds", 1, "--threads", 1, "--out", tmp_path / "b")
    assert done.status == 0 and "tokens a second read" in done.err


def test_bad_numbers_get_one_sentence(run, house, tmp_path):
    done = run("bench", house.base, "--batch", "1,x", "--out", tmp_path / "b")
    assert done.status == 2 and "whole numbers above 0" in done.err and not (tmp_path / "b").exists()
