"""llmsim: how will this model, on these GPUs, with this scheduler, serve this traffic?"""
