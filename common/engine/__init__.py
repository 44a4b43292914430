"""mmengine's Runner as all trainers use it: safe checkpoints, exact resuming, progress, several processes."""
