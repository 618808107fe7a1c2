"""What one prefill or decode step costs, by model, GPU, batch, context, SM share, TP degree."""
