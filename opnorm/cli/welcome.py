"""What ``opnorm`` says by itself."""

__all__ = ["WELCOME"]

WELCOME = """\
opnorm: how strongly can a neural network amplify a change of its input?

  opnorm norms model.safetensors        measure the weights of a file, layer by layer
  opnorm norms 'resnet(depth=20)'       measure a network; --help says how yours is named
  opnorm train --epochs 1 --limit 200   train one for a moment, and keep the run
  opnorm attack RUN --limit 50          attack it; RUN: the key that the training printed
  opnorm analyze RUN                    one page of all analyses

  opnorm study tour      compare 28 ways of training on one page; minutes
  opnorm doctor          what this machine can do, and what is missing
  opnorm --help          all commands; opnorm COMMAND --help: one of them"""
"""Commands by task."""
