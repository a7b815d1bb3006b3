// A quad over the whole region.

void main()
{
  uv = 0.5 * corner + 0.5;
  gl_Position = vec4(corner, 0.0, 1.0);
}
