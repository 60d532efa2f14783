"""Builds the network with RobustBench's class: pip install robustbench 'setuptools<82'."""

from robustbench.model_zoo.architectures.resnet import PreActBlock, PreActResNet


def build():
    return PreActResNet(PreActBlock, [2, 2, 2, 2], num_classes=10, bn_before_fc=True, out_shortcut=True)
