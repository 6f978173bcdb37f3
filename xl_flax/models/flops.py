"""Model FLOPs."""


def encoder_flops(config, length, layers=None, backward=True):
    spans = sum(config.attended_span(layer, length) for layer in range(config.num_layers))
    return {"body": 6.0 * config.body_params, "attention": 12.0 * config.width * spans}


def mlm_head_flops(config, length, slots):
    return {
        "projection": 6.0 * config.width * config.vocab_size * slots / length,
        "head": 6.0 * config.head_dense * config.width**2 * slots / length,
    }
