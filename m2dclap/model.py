"""M2D-CLAP: an encoder of visible patches, a predictor of masked ones, an averaged target, and a head for captions.

The masks are random. The two losses predict masked latents (M2D) and match clips with captions (CLAP).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from m2dprep.m2dclap.config import ModelConfig
from m2dprep.m2dclap.distributed import gather_rows
from m2dprep.m2dclap.fusion.patches import FusedPatchEmbed
from m2dprep.m2dclap.guided_masks import guided_mask, needs_latent
from m2dprep.m2dclap.heads import new_audio_head, project_tokens, xavier
from m2dprep.m2dclap.masking import Mask
from m2dprep.m2dclap.vit import Encoder, blocks, sincos_positions


def take(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, D) at ``indices`` (B, K), in their order: (B, K, D)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


VARIANCE_EPS = 1e-6


def standardise(latent: torch.Tensor) -> torch.Tensor:
    """Scale each token of (B, N, D) to zero mean and unit (unbiased) variance over its dimensions."""
    mean, variance = latent.mean(dim=-1, keepdim=True), latent.var(dim=-1, keepdim=True)
    return (latent - mean) / (variance + VARIANCE_EPS) ** 0.5


def m2d_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over masked tokens (B, M, D) of 2 − 2 cos(prediction, standardised target): squared distances of unit
    vectors.

    Source: Niizumi et al., "Masked Modeling Duo" (2023), equation 3, with standardised targets as in their code.
    """
    target = standardise(target.float())
    cosine = (F.normalize(prediction.float(), dim=-1) * F.normalize(target, dim=-1)).sum(dim=-1)
    return (2 - 2 * cosine).mean()


def clap_loss(
    audio: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor, *, gather: bool = False
) -> torch.Tensor:
    """Symmetric cross entropy over the cosines of all pairs in a batch; audio[i] belongs to text[i], (B, D) each.

    ``logit_scale`` is the logarithm of the inverse temperature. Two clips with equal captions count as each other's
    negatives, as in the original.

    With ``gather``, the batch is that of all W processes and this is the mean over this process's rows: each process
    computes only its B rows of B · W cosines. The average over processes, and of their gradients, equals that of one
    process with the whole batch (CLIP's "local loss with gradient"); the original's audio gradient is 1/W of it.
    """
    audio, text = F.normalize(audio.float(), dim=-1), F.normalize(text.float(), dim=-1)
    pairs = torch.arange(len(audio), device=audio.device)
    all_audio, all_text = audio, text
    if gather:
        all_audio, all_text = gather_rows(torch.cat([audio, text], dim=1)).split(audio.shape[1], dim=1)
        pairs = pairs + dist.get_rank() * len(audio)
    by_audio = logit_scale.exp() * audio @ all_text.T
    by_text = logit_scale.exp() * text @ all_audio.T
    return (F.cross_entropy(by_audio, pairs) + F.cross_entropy(by_text, pairs)) / 2


# Mean and standard deviation of AudioSet's log-mels: the original's values, used if a checkpoint brings none.
DEFAULT_NORM_STATS = (-7.1, 4.2)
INITIAL_TEMPERATURE = 0.07
MAX_LOGIT_SCALE = math.log(100)


class Output(NamedTuple):
    """The results of a training step for B clips of L patches, of which V are visible.

    ``loss`` is the sum of ``loss_m2d`` and ``loss_clap`` with the model's ``loss_weights``. ``mask`` (B, L) is 1 for
    masked patches; ``latent`` (B, 1 + V, D) holds the visible patches after the class token; ``pred`` and ``target``
    (B, L − V, D) hold the masked ones; ``audio_embedding`` and ``text_embedding`` (B, D) are not yet of unit length.
    """

    loss: torch.Tensor
    loss_m2d: torch.Tensor
    loss_clap: torch.Tensor
    mask: torch.Tensor
    latent: torch.Tensor
    pred: torch.Tensor
    target: torch.Tensor
    audio_embedding: torch.Tensor
    text_embedding: torch.Tensor


class M2DCLAP(Encoder):
    """The model of Niizumi et al., "M2D-CLAP" (Interspeech 2024), and of stage 1 of 2025 with its semantic head.

    Parameter names are those of its authors' code.

    The target has its own random start, as in that code, and follows the encoder by `update_target`; it takes no
    gradients. Log-mels are normalised with ``norm_stats`` (mean, standard deviation) before they come in.
    """

    norm_stats: torch.Tensor
    decoder_pos_embed: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim, decoder_dim = config.embed_dim, config.decoder_embed_dim
        self.register_buffer("norm_stats", torch.tensor(DEFAULT_NORM_STATS))
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.register_buffer("decoder_pos_embed", sincos_positions(decoder_dim, config.grid_size))
        self.decoder_blocks = blocks(config.decoder_depth, decoder_dim, config.decoder_num_heads, config.layer_norm_eps)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(decoder_dim, dim)
        self.target_blocks = blocks(config.depth, dim, config.num_heads, config.layer_norm_eps)
        self.target_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))
        self.audio_proj = new_audio_head(dim, config.sem_mode)
        self.text_proj = nn.Identity() if config.off_emb_dim == dim else nn.Linear(config.off_emb_dim, dim)
        self.loss_weights = config.epoch_weights(0, 1)
        self.apply(xavier)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(dim, -1))
        if isinstance(self.patch_embed, FusedPatchEmbed):
            self.patch_embed.begin_as_plain()
        for token in (self.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)
        if config.sem_mode and isinstance(self.text_proj, nn.Linear):
            self.text_proj.reset_parameters()  # the original of 2025 makes it after it has started all others
        self.target_blocks.requires_grad_(False)
        self.target_norm.requires_grad_(False)

    def forward(
        self,
        log_mel: torch.Tensor,
        text_embedding: torch.Tensor,
        noise: torch.Tensor | None = None,
        clean: torch.Tensor | None = None,
        *,
        longer: torch.Tensor | None = None,
        hint: float = 1.0,
        gather: bool = False,
    ) -> Output:
        """Both losses of a batch.

        ``log_mel`` (B, 1, F, T) is normalised; ``text_embedding`` (B, off_emb_dim) has one caption per clip, of any
        norm; ``noise`` (B, ``config.mask_numbers``), uniform, fixes the mask and is drawn if it is not given; ``hint``
        is the share of the mask that is random (`m2dclap.guided_masks`); ``clean`` is the target's input if ``log_mel``
        has noise mixed in. A model that fuses takes channels (B, 4, F, T) of both, and which clips are ``longer`` (B,)
        than its input. With ``gather``, captions are contrasted over all processes.
        """
        tokens = self.embed_patches(log_mel, longer)
        if noise is None:
            noise = torch.rand(len(tokens), self.config.mask_numbers, device=tokens.device)
        mask = self.draw_mask(log_mel, tokens, noise, hint)
        latent = self.encode_tokens(take(tokens, mask.visible))
        pred = self.predict(latent, mask)
        with torch.no_grad():
            to_predict = tokens if clean is None else self.embed_patches(clean, longer)
            target = self.target(take(to_predict, mask.masked))
        audio, text = self.project_tokens(latent[:, 1:]), self.project_text(text_embedding)
        with torch.autocast(log_mel.device.type, enabled=False):
            loss_m2d = m2d_loss(pred, target)
            loss_clap = clap_loss(audio, text, self.logit_scale, gather=gather)
        loss = self.loss_weights[0] * loss_m2d + self.loss_weights[1] * loss_clap
        return Output(loss, loss_m2d, loss_clap, mask.hidden, latent, pred, target, audio, text)

    @torch.no_grad()
    def draw_mask(self, log_mel: torch.Tensor, tokens: torch.Tensor, noise: torch.Tensor, hint: float) -> Mask:
        """The mask of normalised log-mels (B, 1, F, T), whose patches are ``tokens`` (B, L, D); see `forward`."""
        latent = self.encode_tokens(tokens)[:, 1:] if needs_latent(self.config, hint) else None
        with torch.autocast(log_mel.device.type, enabled=False):
            return guided_mask(self.config, log_mel, noise, hint, latent)

    def predict(self, latent: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Latents of the visible patches (B, 1 + V, D) → predictions for the masked ones (B, L − V, D)."""
        x = self.decoder_embed(latent)
        mask_tokens = self.mask_token.to(x.dtype).expand(len(x), mask.masked.shape[1], -1)
        patches = take(torch.cat([x[:, 1:], mask_tokens], dim=1), mask.restore)
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_pred(self.decoder_norm(x))
        return take(x[:, 1:], mask.masked)

    @torch.no_grad()
    def target(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens of the masked patches (B, M, D) → their latents (B, M, D), which the predictor is to predict."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([cls_token, tokens], dim=1)
        for block in self.target_blocks:
            x = block(x)
        x = self.target_norm(x)
        return x[:, 1:]

    def project_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch latents (B, L, D), without class tokens → (B, D) in the space shared with captions.

        Only directions matter. In encoding, these are the patches of all chunks of a clip.
        """
        return project_tokens(self.audio_proj, tokens)

    def project_text(self, text_embedding: torch.Tensor) -> torch.Tensor:
        """Sentence embeddings (B, off_emb_dim) → (B, D) in the space shared with audio; only directions matter."""
        return self.text_proj(text_embedding)

    def clap_audio(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Normalised log-mels (B, 1, F, T), T at most the model's → (B, D) from all patches."""
        return self.project_tokens(self.encode(log_mel)[:, 1:])

    @torch.no_grad()
    def update_target(self, decay: float) -> None:
        """target ← decay · target + (1 − decay) · encoder, after an optimiser step; all tensors in two kernels."""
        target: list[torch.Tensor] = [*self.target_blocks.parameters(), *self.target_norm.parameters()]
        online: list[torch.Tensor] = [*self.blocks.parameters(), *self.norm.parameters()]
        torch._foreach_mul_(target, decay)
        torch._foreach_add_(target, online, alpha=1 - decay)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the temperature within 0.01 … 1 (logit scale within 0 … ln 100)."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
