// One Gaussian as a screen-aligned ellipse: projection, colour and the quad that holds it.
// View axes: x right, y up, z forward (depth). Pixels count from the bottom left.

#define TEXEL(image, i) \
  texelFetch(image, ivec2((i) % textureSize(image, 0).x, (i) / textureSize(image, 0).x), 0)

// Real spherical harmonics above the constant one, in the order of the 3DGS PLY layout.
vec3 view_dependent(int splat, vec3 d)
{
  vec3 sum = vec3(0.0);
  int first = splat * num_sh;
  float xx = d.x * d.x, yy = d.y * d.y, zz = d.z * d.z;
  float xy = d.x * d.y, yz = d.y * d.z, xz = d.x * d.z;
  if (num_sh >= 3) {
    sum += 0.4886025119029199 * (-d.y * TEXEL(harmonics, first).rgb +
                                 d.z * TEXEL(harmonics, first + 1).rgb -
                                 d.x * TEXEL(harmonics, first + 2).rgb);
  }
  if (num_sh >= 8) {
    sum += 1.0925484305920792 * xy * TEXEL(harmonics, first + 3).rgb -
           1.0925484305920792 * yz * TEXEL(harmonics, first + 4).rgb +
           0.31539156525252005 * (2.0 * zz - xx - yy) * TEXEL(harmonics, first + 5).rgb -
           1.0925484305920792 * xz * TEXEL(harmonics, first + 6).rgb +
           0.5462742152960396 * (xx - yy) * TEXEL(harmonics, first + 7).rgb;
  }
  if (num_sh >= 15) {
    sum += -0.5900435899266435 * d.y * (3.0 * xx - yy) * TEXEL(harmonics, first + 8).rgb +
           2.890611442640554 * xy * d.z * TEXEL(harmonics, first + 9).rgb -
           0.4570457994644658 * d.y * (4.0 * zz - xx - yy) * TEXEL(harmonics, first + 10).rgb +
           0.3731763325901154 * d.z * (2.0 * zz - 3.0 * xx - 3.0 * yy) *
               TEXEL(harmonics, first + 11).rgb -
           0.4570457994644658 * d.x * (4.0 * zz - xx - yy) * TEXEL(harmonics, first + 12).rgb +
           1.445305721320277 * d.z * (xx - yy) * TEXEL(harmonics, first + 13).rgb -
           0.5900435899266435 * d.x * (xx - 3.0 * yy) * TEXEL(harmonics, first + 14).rgb;
  }
  return sum;
}

void main()
{
  vec4 entry = TEXEL(order, gl_InstanceID);
  int splat = int(entry.x);
  int slot = int(entry.y) * SLOT_TEXELS;
  vec4 mean = TEXEL(geometry, splat * 4);  // and opacity
  vec4 cov_a = TEXEL(geometry, splat * 4 + 1);  // xx xy xz yy
  vec4 cov_b = TEXEL(geometry, splat * 4 + 2);  // yz zz selected -
  vec4 base = TEXEL(geometry, splat * 4 + 3);
  vec4 row_x = TEXEL(slots, slot), row_y = TEXEL(slots, slot + 1), row_z = TEXEL(slots, slot + 2);
  vec4 eye = TEXEL(slots, slot + 3);
  vec4 tint = TEXEL(slots, slot + 4);
  vec4 marks = TEXEL(slots, slot + 5);

  vec4 local = vec4(mean.xyz, 1.0);
  vec3 p = vec3(dot(row_x, local), dot(row_y, local), dot(row_z, local));

  // Linearised projection: rows of the 2 x 3 Jacobian times the object's frame.
  bool perspective = eye.w > 0.0;
  vec2 scale = perspective ? focal / p.z : focal;
  vec2 slope = perspective ? clamp(p.xy / p.z, limits.xy, limits.zw) : vec2(0.0);
  vec3 u = scale.x * (row_x.xyz - slope.x * row_z.xyz);
  vec3 v = scale.y * (row_y.xyz - slope.y * row_z.xyz);
  mat3 covariance = mat3(cov_a.xyz, vec3(cov_a.yw, cov_b.x), vec3(cov_a.z, cov_b.xy));
  vec3 cov_u = covariance * u;
  float a = dot(u, cov_u) + EPS2D, b = dot(v, cov_u), c = dot(v, covariance * v) + EPS2D;
  float det = a * c - b * b;

  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);  // outside: draws nothing
  if (det <= 0.0 || mean.w < ALPHA_MIN) {
    return;
  }

  vec3 direction = normalize(perspective ? mean.xyz - eye.xyz : eye.xyz);
  vec3 color = max(0.5 + 0.28209479177387814 * base.rgb + view_dependent(splat, direction), 0.0);
  float shade = 0.35 + 0.65 * dot(color, vec3(0.2126, 0.7152, 0.0722));
  color = mix(color, tint.rgb * shade, tint.a);
  splat_color = vec4(mix(color, selection.rgb * shade, selection.a * cov_b.z), mean.w);
  splat_conic = vec3(c, -b, a) / det;
  splat_marks = vec3(p.z, marks.xy);

  // The quad around the ellipse where alpha reaches ALPHA_MIN, along its axes.
  float middle = 0.5 * (a + c);
  float radius = length(vec2(0.5 * (a - c), b));
  float major = middle + radius;
  float minor = max(middle - radius, 0.5 * EPS2D);
  vec2 axis = radius > 1e-6 * middle ? normalize(a > c ? vec2(major - c, b) : vec2(b, major - a)) :
                                       vec2(1.0, 0.0);
  float reach = sqrt(2.0 * log(mean.w / ALPHA_MIN));
  splat_offset = reach * (corner.x * sqrt(major) * axis +
                          corner.y * sqrt(minor) * vec2(-axis.y, axis.x));
  vec2 pixel = scale * p.xy + center + splat_offset;
  gl_Position = vec4(2.0 * pixel / size - 1.0, 0.0, 1.0);
}
