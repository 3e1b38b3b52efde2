"""`bench finetune`: train on repeated pictures, attack, prune, attack again."""
