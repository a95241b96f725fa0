from genrag_cli.testing.backbone_contract import BackboneContract


class TestStainKeepsTheContract(BackboneContract):
    name = "stain"


class TestLite0KeepsTheContract(BackboneContract):
    name = "lite0"
