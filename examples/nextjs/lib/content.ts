export type Article = { id: string; title: string; text: string; revision: number };

/** Reads from the backend, and keeps the answer until the relay calls the route for one of its tags. */
async function read<T>(path: string, ...tags: string[]): Promise<T | undefined> {
  const response = await fetch(`${process.env.BACKEND_URL}${path}`, {
    cache: "force-cache",
    next: { tags: ["content", ...tags] },
  });
  if (response.status === 404) return undefined;
  if (!response.ok) throw new Error(`the backend answers ${response.status}`);
  return response.json();
}

export const readArticle = (id: string) => read<Article>(`/articles/${encodeURIComponent(id)}`, `article:${id}`);
export const readArticles = async () => (await read<Article[]>("/articles", "article"))!;
