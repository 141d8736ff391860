"""The host that runvm runs on: what it needs (`runvm doctor`) and the engines that call runvm (`runvm install`)."""
