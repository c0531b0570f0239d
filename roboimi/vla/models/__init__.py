"""Networks of the policy: frozen encoder, backbones, projectors, normalisers and heads."""
