"""LJE of one dense layer of a PyTorch module, by autograd on the whole module; no code of the library."""

import torch


def lje_values(model, layer, sample_losses, phi, outputs, lam, step=1e-4):
    """Return the values ``(T, N)`` of training samples for one output of each question.

    Parameters
    ----------
    model : torch.nn.Module
        In float64 and eval mode.
    layer : str
        The name of a ``torch.nn.Linear`` in it.
    sample_losses : callable
        ``sample_losses(call)`` gives the losses ``(N,)``; ``call(*args, **kwargs)`` runs the module.
    phi : tensor of shape (T, d)
        What the layer takes in for the questions, without a bias's constant.
    outputs : sequence of T ints
    lam : float
        Damping.
    """
    module = model.get_submodule(layer)
    parts = [module.weight] if module.bias is None else [module.weight, module.bias[:, None]]
    theta = torch.cat(parts, dim=1).detach()

    def losses(theta):
        weights = {f"{layer}.weight".lstrip("."): theta if module.bias is None else theta[:, :-1]}
        if module.bias is not None:
            weights[f"{layer}.bias".lstrip(".")] = theta[:, -1]
        return sample_losses(lambda *args, **kw: torch.func.functional_call(model, weights, args, kw))

    def mean(flat):
        return losses(flat.reshape(theta.shape)).mean()

    flat = theta.reshape(-1)
    flat = flat + step * torch.autograd.functional.jacobian(mean, flat)
    gradients = torch.autograd.functional.jacobian(lambda f: losses(f.reshape(theta.shape)), flat)
    hessian = torch.autograd.functional.hessian(mean, flat)
    solved = torch.linalg.solve(hessian + lam * torch.eye(len(flat)).to(flat), gradients.T).T
    weights = ((flat - solved) / len(gradients)).reshape(-1, *theta.shape)  # (N, C, d)
    if module.bias is not None:
        phi = torch.cat([phi, torch.ones_like(phi[:, :1])], dim=1)
    return torch.stack([weights[:, j] @ p for j, p in zip(outputs, phi, strict=True)]).numpy()
