// Blends one Gaussian: premultiplied display colour, and depth and selection weighted likewise.

void main()
{
  vec2 d = splat_offset;
  float power = 0.5 * (splat_conic.x * d.x * d.x + splat_conic.z * d.y * d.y) +
                splat_conic.y * d.x * d.y;
  float alpha = splat_color.a * exp(-power);
  if (alpha < ALPHA_MIN) {
    discard;
  }
  alpha = min(alpha, ALPHA_MAX);
  blended_color = vec4(splat_color.rgb, 1.0) * alpha;
  blended_marks = vec4(splat_marks, 1.0) * alpha;
}
