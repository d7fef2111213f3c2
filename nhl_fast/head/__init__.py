"""The nested layer, its objective, weights and distillation: the definitions."""
