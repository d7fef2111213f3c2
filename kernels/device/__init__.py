"""What the kernels share on the device: functions of numbers and tiles, none of which has a launch of its own."""
