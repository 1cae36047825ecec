"""`realignd` whose ranks are rank_child."""

from realign_cluster.cli import realignd
from realign_cluster.node import orders

if __name__ == "__main__":
    orders.RANK_MODULE = "tests.node.rank_child"
    realignd.main()
