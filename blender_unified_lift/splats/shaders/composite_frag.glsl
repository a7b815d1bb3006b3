// Puts the blended splats into the region: display colour to the region's colour space, expected
// depth to the depth buffer's scale, and an outline inside the edge of what is selected.

vec3 decode(vec3 display)
{
  if (gamma > 0.0) {
    return pow(display, vec3(gamma));
  }
  vec3 curve = pow((display + 0.055) / 1.055, vec3(2.4));
  return mix(curve, display / 12.92, lessThanEqual(display, vec3(0.04045)));
}

bool is_marked(ivec2 pixel, int channel)
{
  ivec2 last = textureSize(marks, 0) - 1;
  vec4 mark = texelFetch(marks, clamp(pixel, ivec2(0), last), 0);
  return mark[channel] > 0.5 * max(mark.a, 0.5);
}

bool is_edge(ivec2 pixel, int channel)
{
  bool inside = true;
  for (int y = -1; y <= 1; y++) {
    for (int x = -1; x <= 1; x++) {
      inside = inside && is_marked(pixel + ivec2(x, y) * line_width, channel);
    }
  }
  return !inside && is_marked(pixel, channel);
}

void main()
{
  ivec2 pixel = ivec2(uv * vec2(textureSize(marks, 0)));
  vec4 premultiplied = texelFetch(colors, pixel, 0);
  vec4 mark = texelFetch(marks, pixel, 0);
  if (premultiplied.a < ALPHA_MIN) {
    discard;
  }
  vec4 display = vec4(premultiplied.rgb / premultiplied.a, premultiplied.a);
  if (line_width > 0) {
    if (is_edge(pixel, 2)) {
      display = mix(display, vec4(active_color.rgb, 1.0), active_color.a);
    }
    else if (is_edge(pixel, 1)) {
      display = mix(display, vec4(selected_color.rgb, 1.0), selected_color.a);
    }
  }
  fragment = vec4(decode(max(display.rgb, 0.0)) * display.a, display.a);
  float z = -mark.r / mark.a;
  gl_FragDepth = 0.5 + 0.5 * (depth_row.x * z + depth_row.y) / (depth_row.z * z + depth_row.w);
}
