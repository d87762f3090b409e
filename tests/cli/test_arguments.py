"""Every wrong use of the command line ends with status 2 and one line that names the value and what was expected."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from opnorm.cli import arguments
from opnorm.cli.analyze import AnalyzeOptions
from opnorm.cli.attack import AttackOptions
from opnorm.cli.commands import COMMANDS
from opnorm.cli.measure import NormsOptions
from opnorm.cli.runs import TrainOptions
from opnorm.errors import OpnormError
from tests.startup import without_torch

USES = """
nors                                          | unknown command 'nors'; did you mean 'norms'\\?; expected first one of norms
''                                            | unknown command ''; expected first one of norms
--json                                        | unknown option '--json'; expected first one of norms
'mlp()'                                       | unknown command 'mlp\\(\\)'; did you mean opnorm norms 'mlp\\(\\)'\\?
--print-completion                            | --print-completion '': expected bash or zsh
--print-completion fish                       | --print-completion 'fish': expected bash or zsh
norms                                         | MODEL is missing; expected such as: opnorm norms 'resnet
norms ''                                      | MODEL '': expected one, not empty
norms mlp() cnn()                             | 'cnn\\(\\)' is too much: opnorm norms takes one MODEL
norms mlp() --odr 1                           | unknown option --odr of opnorm norms; did you mean --ord\\?
norms mlp() --eps 0.1                         | unknown option --eps of opnorm norms; an option of opnorm attack
norms mlp() -o x                              | unknown option -o of opnorm norms
norms mlp() --ord                             | --ord has no value
norms mlp() --ord 7                           | norm '7': expected 1, 2, inf
norms mlp() --ord nan                         | norm 'nan': expected 1, 2, inf
norms mlp() --json=yes                        | --json=yes: --json takes no value
norms mlp() --json true                       | 'true' is too much: --json takes no value
norms mlp() --json --no-json                  | --no-json is given twice; expected one value
norms mlp() --json --csv                      | exclude each other
norms mlp() --input 0                         | --input '0': expected numbers
norms mlp() --relative-width=nan              | --relative-width 'nan': expected a number
norms mlp() --fail-over                       | --fail-over has no value; expected one or more
norms mlp() --fail-over inf=-1                | no norm is below 0
norms mlp() --against nope.json               | no file nope.json; did you mean 'junk.json'\\?
norms 'cnn(width=2)' --ord inf --against text.txt    | text.txt is no run; expected a run, or a network as a call
norms 'cnn(width=2)' --ord 1 --against no.pt         | no.pt is no run, and there is no such file
norms mlp() --plot x.gif                      | ends in .svg, .pdf, .png or .html, not '.gif'
norms mlp(width=nan)                          | nan is not a setting; expected a number
norms mlp(width=())                           | mlp\\(\\): width=\\(\\): expected a whole number
norms nope.safetensors                        | no file nope.safetensors
norms empty                                   | empty has no weights: expected model.safetensors
norms 'file("empty")'                         | empty has no weights: expected model.safetensors
norms 'file("junk.safetensors", arch=nope())' | unknown name 'nope'; your own code
train mlp()                                   | takes options only; did you mean --model 'mlp\\(\\)'\\?
train --model=                                | --model '': expected one, not empty
train --model mlp --model cnn                 | --model is given twice; expected one value
train --no-model                              | unknown option --no-model of opnorm train
train --regularizers --epochs 1               | --regularizers has no value; expected one or more
train --epochs 1.5                            | --epochs '1.5': expected a whole number
train --epochs 1 2                            | '2' is too much: --epochs takes one value
train --epochs 9999999999999999999999         | epochs=9+: expected a whole number from 0 to
train --epochs -1                             | epochs=-1: expected a whole number
train --ema x                                 | --ema 'x': expected a number
train --ema nan                               | ema=nan: expected a decay
train --precision fp61                        | --precision 'fp61': expected fp32, bf16 or auto
norms mlp() --input 3,x                       | --input '3,x': expected numbers from 1 on with commas
norms mlp() --input 3,,4                      | --input '3,,4': expected numbers from 1 on with commas
norms mlp() --ord 1,,2                        | --ord '1,,2': expected some of 1, 2, inf
train --device cuda:x                         | --device cuda:x: .*; expected one that this machine has
train --device gpu                            | --device gpu: .*such as cpu
train --schedule 'step(milestones=("a",))'    | milestones=\\('a',\\): expected \\(a whole number, \\.\\.\\.\\)
train --schedule 'step(milestones=3)'         | milestones=3: expected \\(a whole number, \\.\\.\\.\\)
train --data mlp()                            | unknown data set 'mlp'; known: digits
attack                                        | MODEL is missing; expected such as: opnorm attack
attack --eps 0.1 KEY                          | MODEL is missing; --eps takes all values that follow it
attack KEY --eps 0.1 x                        | --eps 'x': expected a number, such as 8/255
attack KEY --versoin fast                     | unknown option --versoin of opnorm attack; did you mean --version\\?
attack KEY --norm l5                          | --norm 'l5': expected a number
attack KEY --save x.pt                        | --save x.pt: expected a name that ends in .safetensors
attack KEY --fail-under 45                    | --fail-under 45: expected a share
attack KEY --limit x                          | --limit 'x': expected a whole number
attack nope                                   | nope is no run in runs .*unknown model 'nope'
analyze KEY KEY                               | is too much: opnorm analyze takes one MODEL
analyze --what accuracy KEY                   | MODEL is missing; --what takes all values that follow it
analyze KEY --what acuracy                    | did you mean 'accuracy'\\?
compare KEY                                   | 1 network to compare; expected two or more
compare                                       | 0 network to compare; expected two or more
study tuor                                    | did you mean 'tour'\\?
study --lst                                   | unknown option --lst of opnorm study; did you mean --list\\?
study tour --figures gif                      | --figures 'gif': expected svg, pdf or png
study tour --storage s3://x                   | --storage s3://x: expected with --engine ray only
separation a b                                | 'b' is too much: opnorm separation takes one DATA
separation --split valid                      | --split 'valid': expected train, test or all
separation --norm x                           | --norm 'x': expected a number
ls x                                          | 'x' is too much: opnorm ls takes options only
ls --out text.txt                             | --out text.txt: expected a folder of runs
ls --where 'nope > 3'                         | no column 'nope'
ls --parquet x.csv                            | expected a name that ends in .parquet
show                                          | RUN is missing; expected such as: opnorm show
show nope                                     | nope is no run in runs; opnorm ls --out runs lists them
export KEY                                    | --to is missing; expected such as: opnorm export
export nope --to x                            | nope is no run in runs; opnorm ls --out runs lists them
push KEY                                      | --repo is missing; expected such as: opnorm push
rm                                            | no run to remove was named
rm nope                                       | nope is no run in runs
norms cnn(widht=4)                            | cnn\\(\\) has no parameter 'widht'; did you mean 'width'\\?
norms 'cnn(width="x")'                        | cnn\\(\\): width=.*: expected a whole number
norms abc123                                  | abc123 is no run in runs .*unknown model 'abc123'
norms mlp() --against cnnn                    | cnnn is no run in runs .*did you mean 'cnn'
norms 'file("nope.safetensors")'              | no file nope.safetensors
norms nowhere.build()                         | no module named 'nowhere'
norms mlp() --fail-over x                     | --fail-over 'x': expected NORM=NUMBER
train --model cnnn                            | unknown model 'cnnn'; did you mean 'cnn'\\?
train --objective 'pgd_att()'                 | unknown objective 'pgd_att'; did you mean 'pgd_at'\\?
train --objective 'pgd_at(epss=0.1)'          | no parameter 'epss'; did you mean 'eps'\\?; it accepts: eps=8/255, norm=inf
train --objective 'pgd_at(start="here")'      | start='here': expected 'point' or 'uniform' or 'gaussian'
train --regularizers plain 'norm_decai(1)'    | unknown regularizer 'plain'
train --regularizers 'norm_decay(1)' svd      | unknown regularizer 'svd'; did you mean 'svc'\\?
train --optimizer sdg                         | unknown optimizer 'sdg'; did you mean 'sgd'\\?
train --schedule cosin                        | unknown schedule 'cosin'; did you mean 'cosine'\\?
train --augment flop()                        | unknown augmentation 'flop'; did you mean 'flip'\\?
train --analyses 'singular_spread(lyer="1")'  | no parameter 'lyer'
train --data 'parquet("nope")'                | there is no .*nope.*expected a .parquet file
train --data 'folder(path="nope")'            | there is no .*nope.*expected a folder with train
train --limit 0                               | limit=0: expected a whole number of points
train --seed -1                               | seed=-1: expected a whole number
train --device cpuu                           | --device cpuu: no device; did you mean 'cpu'\\?
train --track tensorbord                      | no such tracker; did you mean 'tensorboard'\\?
attack mlp()                                  | mlp\\(\\) is no run in runs .*add --data
attack KEY --data digitz                      | unknown data set 'digitz'; did you mean 'digits'\\?
attack KEY --attack pgdd                      | unknown attack 'pgdd'; did you mean 'pgd'\\?
attack KEY --attack 'pgd(stepss=3)'           | no parameter 'stepss'; did you mean 'steps'\\?
attack KEY --attack 'autoattack(certify=prof())' | unknown name 'prof'; did you mean 'proof'\\?
attack KEY --surrogate cnnn                   | cnnn is no run in runs .*did you mean 'cnn'
attack KEY --limit 0                          | limit=0: expected a whole number of points
analyze KEY nosuch                            | 'nosuch' is too much: opnorm analyze takes one MODEL
analyze nosuch                                | nosuch is no run in runs .*unknown model 'nosuch'
analyze KEY --what 'margins(splt="test")'     | no parameter 'splt'; did you mean 'split'\\?
compare KEY nosuch                            | nosuch is no run in runs .*unknown model 'nosuch'
study nosuch                                  | unknown study 'nosuch'; known: liang2021
study liang2021.table9                        | liang2021 has no part 'table9'; did you mean liang2021.table2\\?
study 'wen2020("figur12")'                    | wen2020 has no part 'figur12'; did you mean wen2020.figure12\\?
study roth2020.nosuch                         | roth2020 has no part 'nosuch'; there are table2, theorem1
study liang2021.table1.x                      | has no part 'table1.x'; did you mean liang2021.table1\\?
study 'tour(model="cnnn")'                    | unknown model 'cnnn'; did you mean 'cnn'\\?
study 'tour("digitz")'                        | unknown data set 'digitz'; did you mean 'digits'\\?
study 'tour(model="cnn(width=0)")'            | width=0: expected a whole number, at least 1
study 'tour(data=digits())'                   | data=digits\\(\\): expected a text, which is in quotes: data="digits\\(\\)"
study 'liu2020.table1(data="folder(7)")'      | folder\\(\\): path=7: expected a text
study "tour(data='folder(\\"nope\\")')"         | there is no .*nope.*expected a folder with train
study nosuch --list                           | --list nosuch: no such study; --list alone shows all
study lian2021.table1                          | no module named 'lian2021'; .*; did you mean liang2021.table1\\?
study lian2021.table1 --list                  | did you mean 'liang2021.table1'\\?
study liang2021.table9 --list                 | liang2021 has no part 'table9'; did you mean liang2021.table2\\?
study 'tour(seeds=2)' --list                  | expected a study or a part of one, without seeds
study 'mine.study()' --list                   | --list mine.study\\(\\): no such study
study tour --size big                         | size='big': expected 'smoke' or 'laptop'
study 'liang2021.table2(seed=2)'              | no parameter 'seed'; did you mean 'seeds'\\?
study 'tour(seeds=1)' --seeds 2               | --seeds and seeds=1 in tour\\(seeds=1\\): expected one of the two
study tour --model cnnn                       | unknown model 'cnnn'; did you mean 'cnn'\\?
study tour --jobs 0                           | jobs=0: expected at least 1 process
separation digitz                             | unknown data set 'digitz'; did you mean 'digits'\\?
separation --norm 3                           | norm=3: expected 1, 2 or inf
push nope --repo a/b                          | nope is no run in runs
doctor x                                      | 'x' is too much: opnorm doctor takes options only
norms mlp() --relative-width -1               | relative_width=-1: expected a number above 0
attack KEY --norm 3                           | norm=3: expected 1, 2 or inf; pgd and fgsm, and training on them
attack KEY --eps 8                            | did you mean 8/255\\?
attack KEY --attack 'pgd(norm=0.5)'           | norm=0.5: expected a number from 1 on
attack KEY --attack 'pgd(steps=-1)' --eps 0.1 | steps=-1: expected a whole number, at least 0
attack KEY --attack 'autoattack(batch=0)'     | batch=0: expected a whole number, at least 1
attack KEY --attack 'fab()' --norm 3          | norm=3: expected 1, 2 or inf
train --objective 'pgd_at(norm=0.5)'          | norm=0.5: expected a number from 1 on
train --objective 'trades(beta=-1)'           | beta=-1: expected a weight of at least 0
train --optimizer 'sgd(lr=-1)'                | lr=-1: expected a learning rate above 0
train --schedule 'step(milestones=(3, 2))'    | milestones=\\(3, 2\\), gamma=0.1: expected rising whole epochs
train --regularizers 'norm_decay(1, form="x")' | form='x': expected 'algorithm' or 'code'
train --augment 'flip(p=50)'                  | p=50: expected a probability in \\[0, 1\\]; likely cause: a percentage
train --model 'resnet(depth=21)'              | depth=21: expected 6 n \\+ 2, such as 20
train --model 'cnn(width=-2)'                 | width=-2: expected a whole number, at least 1
train --data 'parquet("images", size=0)'      | size=0: expected a whole number of pixels
train --analyses 'margins(split="valid")'     | split='valid': expected 'train' or 'test'
norms 'cnn(depth=0)'                          | depth=0: expected a whole number, at least 1
analyze KEY --what 'robust_accuracy(eps=(3,))'   | eps=3 is larger than the whole range .*did you mean 3/255\\?
analyze KEY --what 'norm_table(ords=())'      | ords=\\(\\): expected several orders
study tour --seeds 0                          | seeds=0: expected a whole number, at least 1
study 'tour(lr=0)'                            | lr=0: expected a learning rate above 0
train --out text.txt                          | cannot write in text.txt: Not a directory
train --out text.txt/runs                     | cannot write in text.txt/runs: Not a directory
study tour --keep text.txt                    | cannot write in text.txt: Not a directory
export KEY --to text.txt                      | cannot write in text.txt: Not a directory
"""
LATER = """
norms mlp() --layers nope                     | no layer matches 'nope'; there are 0, 1
norms 'cnn(width=2)' --ord inf --against junk.json   | --against junk.json: '\\{\\.\\.\\. is broken'\\.\\.\\.: expected
norms 'torch.nn.Linear(3)' --input 3          | missing a required argument: 'out_features'
norms junk.safetensors                        | junk.safetensors cannot be read as weights: .*truncated
train --device cuda:99                        | --device cuda:99: torch finds .*; expected one that this machine
train --device mps:7                          | --device mps:7: torch finds .* MPS device.*; expected one that
train --data 'folder("images")'               | train/a/x.png: the file cannot be decoded \\(no image of a known format\\)
"""
"""What only torch, a function, or a file's content says."""

INTERNAL = r"Traceback|\b_[A-Z]\w+|\w+Error\b|NoneType|<class|object at 0x|has no attribute|\[Errno|\x1b"


@pytest.fixture
def key(tiny, finished, tmp_path):
    """The key of a finished run of the user's folder, where there are some files of no use."""
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    (tmp_path / "images/train/a").mkdir(parents=True)
    for name in ("text.txt", "junk.json", "junk.safetensors", "images/train/a/x.png"):
        (tmp_path / name).write_text("{... is broken")
    return tiny.key


def test_each_is_one_line_with_a_hint(main, key):
    wrong = []
    for line in [*USES.strip().splitlines(), *LATER.strip().splitlines()]:
        use, _, message = line.partition(" | ")
        status, out, err = main(*(key if word == "KEY" else word for word in shlex.split(use)))
        text = err.removeprefix("opnorm: ")
        one = err.count("\n") == 1 and len(text) < len(err) < 900 and not re.search(INTERNAL, err)
        if (status, out) != (2, "") or not one or not re.search(message.strip(), text):
            wrong.append((use.strip(), message.strip(), status, out, err))
    assert wrong == []


def test_they_are_refused_before_torch_is_loaded(key, tmp_path):
    uses = [line.partition(" | ")[0] for line in USES.strip().splitlines()]
    commands = [[key if word == "KEY" else word for word in shlex.split(use)] for use in uses]
    for args, (status, out) in zip(commands, without_torch(commands, tmp_path), strict=True):
        assert (args, status, out) == (args, 2, "")


def test_a_file_that_cannot_be_opened_is_named_first(main, monkeypatch):
    from opnorm.cli import listing

    def denied(*args):
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr(listing, "_runs", denied)
    assert main("ls") == (2, "", "opnorm: runs: Permission denied\n")


@pytest.mark.parametrize(
    ("args", "read"),
    [(["norms", "a b", "--ord", "1"], {"model": "a b", "options": NormsOptions(ord="1")}),
     (["train", "--epochs", "-1", "--skip_bad"], {"options": TrainOptions(epochs=-1, skip_bad=True)}),
     (["train", "--no-skip-bad", "--ema=.5"], {"options": TrainOptions(ema=0.5)}),
     (["attack", "m", "--eps=1", "--json", "--eps", "-inf"],
      {"model": "m", "options": AttackOptions(eps=("1", "-inf"), json=True)}),
     (["compare", "--json", "a", "b", "--no-trust"], {"models": ("a", "b"), "options": AnalyzeOptions(json=True)}),
     (["rm", "a", "b", "--yes"], {"runs": ("a", "b"), "yes": True}), (["rm"], {"runs": ()}),
     (["export", "a", "--to", "x"], {"run": "a", "to": Path("x")}),
     (["push", "a", "--dry-run", "--repo=--x"], {"run": "a", "repo": "--x", "dry_run": True}),
     (["separation", "--split", "all"], {"split": "all"})],
)  # fmt: skip
def test_right_uses_are_passed_on(args, read):
    command = arguments.read(args, COMMANDS)
    assert command.func is COMMANDS[args[0]]
    assert command.keywords == read


def test_every_default_is_that_of_the_signature():
    """What is not given is left to the function and to its class of options, but for several values without a name."""
    for name, command in COMMANDS.items():
        known = [argument for argument in arguments._taken(command) if argument.required]
        given = [word for a in known for word in ([a.name, "x"] if a.name.startswith("--") else ["x"])]
        read = arguments.read([name, *given], COMMANDS).keywords
        assert set(read) == {a.name.lstrip("-").lower() for a in known} | (
            read.keys() & {"options", "models", "runs"}
        )


def test_options_of_a_command_of_another_kind():
    """Values of tuples of numbers are read one by one; a required option may stand anywhere."""

    def sums(*, numbers: tuple[int, ...], to: str = "x") -> None:
        """Sum.

        opnorm sums --numbers 1 2
        """

    read = arguments.read(["sums", "--to", "y", "--numbers", "1", "2"], {"sums": sums})
    assert read.keywords == {"numbers": (1, 2), "to": "y"}
    with pytest.raises(OpnormError, match="--numbers 'x': expected a whole number"):
        arguments.read(["sums", "--numbers", "1", "x"], {"sums": sums})
